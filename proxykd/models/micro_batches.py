"""Which rows share a micro-batch, and which worker takes it: every worker as many, of like size in tokens."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from math import ceil
from typing import TypeVar

Part = TypeVar("Part")


def plan_micro_batches(lengths: Sequence[int], max_tokens: int, workers: int = 1) -> list[list[int]]:
    """Groups row indices into as few micro-batches as hold at most `max_tokens` each, for `share_of_worker`.

    A row that is longer stands alone. Every worker has as many, empty ones where rows are too few; the sizes of all are
    alike, by giving each row, longest first, to the micro-batch with the fewest tokens so far (Graham's LPT rule).
    The largest micro-batches, which set the peak of memory, come first.
    """
    if not lengths:
        return []
    each = max(1, ceil(sum(lengths) / (max_tokens * workers)))
    while (plan := _spread(lengths, max_tokens, each * workers)) is None:
        each = max(each + 1, ceil(each * 1.02))
    # Back and forth, so that no worker has the larger ones of every turn.
    turns = (plan[start : start + workers] for start in range(0, len(plan), workers))
    return [part for turn, parts in enumerate(turns) for part in (parts[::-1] if turn % 2 else parts)]


def share_of_worker(plan: list[Part], rank: int, world: int) -> list[Part]:
    """This worker's micro-batches: every world-th."""
    return plan[rank::world]


def _spread(lengths: Sequence[int], max_tokens: int, count: int) -> list[list[int]] | None:
    """The rows in so many micro-batches, largest first; None where one of them would hold too much."""
    loads = [(0, number) for number in range(count)]
    parts: list[list[int]] = [[] for _ in loads]
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        load, number = loads[0]
        load += lengths[index]
        if load > max_tokens and parts[number]:
            return None
        parts[number].append(index)
        heapq.heapreplace(loads, (load, number))
    return [parts[number] for _, number in sorted(loads, key=lambda one: (-one[0], one[1]))]
