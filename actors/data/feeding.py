"""Rows to an engine, so many at once that it is never empty, in calls so small that a slow row holds no other back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Generic, TypeVar

from proxykd.costs.occupancy import Window
from proxykd.text.corpus import Row

Name = TypeVar("Name")
Answer = TypeVar("Answer")


def feed(
    shards: Iterable[tuple[Name, list[Row]]],
    ask: Callable[[list[Row]], Sequence[Answer]],
    write: Callable[[Name, list[Row], list[Answer]], None],
    window: Window,
) -> None:
    """Asks for the rows of all shards, in order, and writes each shard when its last answer is there, whichever is
    whole first. A shard is taken from `shards` when there is room for its first call.

    `ask` and `write` are called in several threads. After an error of theirs, which this raises, no call is begun.
    """
    running: set[Future[None]] = set()
    with ThreadPoolExecutor(window.calls) as pool:
        for name, rows in shards:
            shard = _Shard[Name, Answer](name, rows, window.rows_a_call, write)
            for number in range(shard.parts):
                running = _with_room(running, window.calls)
                running.add(pool.submit(shard.fill, number, ask))
        _with_room(running, 1)


def _with_room(running: set[Future[None]], calls: int) -> set[Future[None]]:
    """Those that run, once they are fewer than `calls`.

    Raises:
        Exception: what one of them ended with.
    """
    while len(running) >= calls:
        done, running = wait(running, return_when=FIRST_COMPLETED)
        for one in done:
            one.result()
    return running


class _Shard(Generic[Name, Answer]):
    """A shard on its way: its rows, and the answers so far."""

    def __init__(self, name: Name, rows: list[Row], size: int, write: Callable[[Name, list[Row], list[Answer]], None]):
        self._name, self._rows, self._size, self._write = name, rows, size, write
        self.parts = max(1, -(-len(rows) // size))
        self._answers: dict[int, Sequence[Answer]] = {}
        self._lock = threading.Lock()

    def fill(self, number: int, ask: Callable[[list[Row]], Sequence[Answer]]) -> None:
        """Asks for a part's rows; the last one that is answered writes the shard."""
        answers = ask(self._rows[number * self._size : (number + 1) * self._size])
        with self._lock:
            self._answers[number] = answers
            whole = len(self._answers) == self.parts
        if whole:
            in_order = [answer for part in range(self.parts) for answer in self._answers[part]]
            self._write(self._name, self._rows, in_order)
