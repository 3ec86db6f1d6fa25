"""Tunes a study's arms, with equal effort: every arm tries a grid of its own, and the student's validation NLL decides.

    python configs/tune.py write GRIDS      GRIDS.yaml names a study, seeds and each arm's grid; writes runs/GRIDS.yaml
    proxykd study runs/GRIDS.yaml
    python configs/tune.py read STUDY       prints each arm's settings with their mean over the seeds, the best first

The test slice has no part in it. configs/tuning/ has the grids of the studies that were run.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from proxykd.runs.json_model import read_model
from proxykd.study.studies import PRESETS, StudyDirectory, load_study
from proxykd.study.study_model import StudyReport


def write(path: Path) -> None:
    grids = yaml.safe_load(path.read_text())
    study = load_study(grids["study"], tuple(grids.get("set", ()))).model_dump(mode="json")
    arms = {}
    for arm, grid in grids["grids"].items():
        for number, values in enumerate(product(*grid.values()), 1):
            setting = dict(zip(grid, values, strict=True))
            title = f"{arm}: " + ", ".join(f"{key} {value}" for key, value in setting.items())
            changes: dict[str, Any] = {**PRESETS[arm].overrides, **study["settings"].get(arm, {}), **setting}
            arms[f"{arm}-{number}"] = {"title": title, "set": changes}
    tuning = {"name": path.stem, "seeds": grids["seeds"], "arms": list(arms), "own_arms": arms, "run": study["run"]}
    target = Path("runs") / path.name
    target.parent.mkdir(exist_ok=True)
    target.write_text(yaml.safe_dump(tuning, sort_keys=False))
    print(f"{len(arms)} arms in {target}")


def read(path: str) -> None:
    directory, found = StudyDirectory(path), defaultdict(list)
    for arm in read_model(directory.report, StudyReport).arms:
        found[directory.study().title(arm.name)].append(arm.validation.held_out_nll)
    for arm in dict.fromkeys(title.split(":")[0] for title in found):
        for title, nlls in sorted(found.items(), key=lambda item: fmean(item[1])):
            if title.split(":")[0] == arm:
                print(f"{fmean(nlls):.4f}  {title}")


if __name__ == "__main__":
    write(Path(sys.argv[2])) if sys.argv[1] == "write" else read(sys.argv[2])
