"""What share of the devices' time goes into tokens, from the lengths of records alone: the rest is waiting.

trainers  a step lasts as long as the worker with the most tokens of its global batch takes
engines   a replica works at so many rows together, each for as many steps as its completion has tokens; at the end the
          last long rows are alone
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from proxykd.models.micro_batches import plan_micro_batches, share_of_worker

CALLS, MOST_ROWS = 8, 8
"""Calls that the rows in flight are spread over at least, and rows of a call at most. A call waits for its slowest row,
and the answered ones beside it keep others out: `python -m benchmarks.fed`."""
SIGMA = 0.9
"""Of log-normal lengths like OpenOrca's."""


@dataclass(frozen=True)
class Window:
    """What is with an engine replica at once."""

    calls: int
    rows_a_call: int

    @classmethod
    def of_rows(cls, rows: int) -> Window:
        """As many calls as there may be with at most so many rows in them all."""
        size = min(MOST_ROWS, max(1, rows // CALLS))
        return cls(rows // size, size)


def log_normal(mean: float, count: int, seed: int) -> list[int]:
    """Lengths of so many texts with this mean, each at least 1, always the same ones."""
    draw, median = random.Random(seed), mean * 2.718281828459045 ** (-(SIGMA**2) / 2)
    return [max(1, round(median * draw.lognormvariate(0.0, SIGMA))) for _ in range(count)]


def trainers_share(batches: Sequence[Sequence[int]], budget: int, workers: int) -> float:
    """Of the workers' time, given the lengths of the rows of each global batch and the tokens of a micro-batch."""
    work = slowest = 0
    for lengths in batches:
        plan = [sum(lengths[i] for i in part) for part in plan_micro_batches(lengths, budget, workers)]
        work += sum(plan)
        slowest += max(sum(share_of_worker(plan, rank, workers)) for rank in range(workers))
    return work / (workers * slowest)


def engines_share(rows: Sequence[int], window: Window, replicas: int, places: int) -> float:
    """Of the time of all places of all replicas, from the first row to the last, given the rows' completions in tokens
    and the calls in flight to all replicas together. A call goes to the replica that has the fewest rows, and the next
    is made when one is answered."""
    size = window.rows_a_call
    calls = deque(rows[start : start + size] for start in range(0, len(rows), size))
    waiting = [deque[tuple[int, int]]() for _ in range(replicas)]
    left: dict[int, int] = {}
    running, held = [0] * replicas, [0] * replicas
    ends: list[tuple[int, int, int]] = []
    now = made = 0
    while True:
        while calls and len(left) < window.calls:
            call, replica = calls.popleft(), held.index(min(held))
            made += 1
            left[made] = len(call)
            held[replica] += len(call)
            waiting[replica].extend((made, steps) for steps in call)
        for replica, queue in enumerate(waiting):
            while queue and running[replica] < places:
                number, steps = queue.popleft()
                running[replica] += 1
                heapq.heappush(ends, (now + steps, replica, number))
        if not ends:
            return sum(rows) / (replicas * places * now)
        now, replica, number = heapq.heappop(ends)
        running[replica] -= 1
        held[replica] -= 1
        left[number] -= 1
        if not left[number]:
            del left[number]
