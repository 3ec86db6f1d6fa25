"""Differences between two arms of a study, paired by seed: the table has only those to its reference.

    python configs/miniature/pairs.py ARMS.CSV ARM OTHER [ARM OTHER ...]

Prints ARM minus OTHER for each measure: the mean, half its 95 % interval, and in how many seeds it is above 0.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from proxykd.study.comparison import mean_and_interval

MEASURES = {"held_out_nll": 4, "nll_a_byte": 5, "true_kl": 4, "top1_agreement": 4}
"""With the decimals that are printed."""


def main() -> None:
    path, *names = sys.argv[1:]
    rows = [row for row in csv.DictReader(Path(path).read_text().splitlines()) if not row.get("size")]  # full size
    by_seed = {(row["name"], row["seed"]): row for row in rows}
    for name, other in zip(names[::2], names[1::2], strict=True):
        seeds = sorted({row["seed"] for row in rows if row["name"] == name})
        if not seeds or (other, seeds[0]) not in by_seed:
            sys.exit(f"{path} has no arms {name} and {other}; it has {', '.join(sorted({r['name'] for r in rows}))}")
        print(f"{name} - {other}")
        for key, digits in MEASURES.items():
            pairs = [(by_seed[name, seed].get(key), by_seed[other, seed].get(key)) for seed in seeds]
            differences = [float(mine) - float(theirs) for mine, theirs in pairs if mine and theirs]
            mean, interval = mean_and_interval(differences)
            if mean is not None:
                above = sum(value > 0 for value in differences)
                spread = "" if interval is None else f" ± {interval:.{digits}f}"
                print(f"  {key:15} {mean:+.{digits}f}{spread}, above 0 in {above} of {len(differences)} seeds")


if __name__ == "__main__":
    main()
