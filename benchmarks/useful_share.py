"""What share of the trainers' time goes into tokens, from lengths alone: the rest is waiting for the busiest of them.

    python -m benchmarks.useful_share [--workers 8] [--global-batch 32] [--steps 200] [--budget 8192]

A step lasts as long as the worker with the most tokens of its global batch takes; a prompt that chosen and rejected
share counts once. The lengths are those of benchmarks/lengths.py. Attention is padded to like lengths, which the last
column says: what of its places are no token's.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from statistics import fmean

from benchmarks.lengths import lengths
from proxykd.costs.occupancy import trainers_share
from proxykd.models.batching import collate_behind
from proxykd.models.micro_batches import plan_micro_batches


def attention_padding(rows: Sequence[Sequence[int]], budget: int, workers: int) -> float:
    """Of one global batch whose rows are a prompt's length and those of the completions behind it."""
    tokens = places = 0
    for part in plan_micro_batches([sum(row) for row in rows], budget, workers):
        if part:
            batch = collate_behind([[0] * rows[i][0] for i in part], [[[0] * c for c in rows[i][1:]] for i in part])
            places += len(batch.layout.padded.tokens_P)
            tokens += sum(rows[i][0] + c - 1 for i in part for c in rows[i][1:])
    return 1 - tokens / places


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("workers", 8), ("global-batch", 32), ("steps", 200), ("budget", 8192)):
        parser.add_argument(f"--{name}", type=int, default=value)
    arguments = parser.parse_args()
    size, budget = arguments.global_batch, arguments.budget
    drawn = lengths(size * arguments.steps)
    print(f"{arguments.steps} global batches of {size}, micro-batches of up to {budget} tokens")
    print(f"{'':<12} {'workers':>7} {'useful share':>12} {'micro-batches':>13} {'attention padding':>17}")
    for stage, sides in (("sft, distil", 1), ("align", 2)):
        rows = [row[: 1 + sides] for row in drawn]
        batches = [[sum(row) for row in rows[start : start + size]] for start in range(0, len(rows), size)]
        for workers in sorted({1, 2, 4, arguments.workers}):
            share = trainers_share(batches, budget, workers)
            parts = fmean(len(plan_micro_batches(batch, budget, workers)) / workers for batch in batches)
            padding = attention_padding(rows[:size], budget, workers)
            print(f"{stage:<12} {workers:>7} {share:>12.3f} {parts:>13.1f} {padding:>17.1%}")


if __name__ == "__main__":
    main()
