"""What share of an engine's places is busy while a round is sampled, from lengths alone: the rest waits for slow rows.

    python -m benchmarks.fed [--rows 4096] [--max-seqs 64]

A replica works at `engine_max_seqs` rows together, each for as many steps as its completion has tokens (lengths of
benchmarks/lengths.py); others that it has been asked for wait. A call goes to the replica that has the fewest rows, and
the next is made when one is answered. The way before was two calls at once, of a shard's 512 rows each.
"""

from __future__ import annotations

import argparse

from benchmarks.lengths import lengths
from proxykd.config import ResourceConfig
from proxykd.costs.occupancy import Window, engines_share

SHARD = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--max-seqs", type=int, default=64)
    arguments = parser.parse_args()
    places = arguments.max_seqs
    rows = [rejected for *_, rejected in lengths(arguments.rows)]
    one = Window.of_rows(ResourceConfig(engine_max_seqs=places).rows_in_flight)
    print(f"{len(rows)} rows of {sum(rows) / len(rows):.0f} tokens on average, {max(rows)} at most; {places} at a time")
    print(f"{'replicas':>8} {'calls':>6} {'busy':>6} {'before':>7}")
    for replicas in (1, 2, 4, 8):
        window = Window(replicas * one.calls, one.rows_a_call)
        now, before = (engines_share(rows, each, replicas, places) for each in (window, Window(2, SHARD)))
        print(f"{replicas:>8} {window.calls:>6} {now:>6.3f} {before:>7.3f}")


if __name__ == "__main__":
    main()
