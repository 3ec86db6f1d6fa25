"""What share of an engine's places is busy while a round is sampled, from lengths alone: the rest waits for slow rows.

    python -m benchmarks.fed [--rows 4096] [--max-seqs 64]

A replica works at `engine_max_seqs` rows together, each for as many steps as its completion has tokens (lengths of
benchmarks/lengths.py); others that it has been asked for wait. A call goes to the replica that has the fewest rows, and
the next is made when one is answered. The way before was two calls at once, of a shard's 512 rows each.
"""

from __future__ import annotations

import argparse
import heapq
from collections import deque
from collections.abc import Sequence

from actors.data.feeding import Window
from benchmarks.lengths import lengths
from proxykd.config import ResourceConfig

SHARD = 512


def busy_share(rows: Sequence[int], window: Window, replicas: int, places: int) -> float:
    """Of all places of all replicas from the first row to the last, with so many calls in flight in all."""
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
        now, before = (busy_share(rows, each, replicas, places) for each in (window, Window(2, SHARD)))
        print(f"{replicas:>8} {window.calls:>6} {now:>6.3f} {before:>7.3f}")


if __name__ == "__main__":
    main()
