"""Who is told what a run does: metrics, trackers, logs. None of them can stop a run."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

Facts = dict[str, Any]
BEHIND = 10_000
"""Messages that a watcher may leave unheard."""
CLOSE_S = 30.0


class Watcher(Protocol):
    """Each method may raise: then it is told no more, and the run goes on."""

    def event(self, event: Facts) -> None:
        """An event of the run, as events/*.jsonl has it."""

    def progress(self, state: Facts) -> None:
        """The stage in hand: `stage`, `round`, `done`, `total`, `unit` and the latest `metrics`."""

    def result(self, stage: str, round_number: int | None, marker: Facts) -> None:
        """A stage has finished, with the cost and result that its marker holds."""

    def close(self) -> None:
        """The coordinator ends."""


Told = Callable[[Watcher], None]


class Silent:
    """A watcher that heeds nothing; others heed what they need."""

    def event(self, event: Facts) -> None:
        pass

    def progress(self, state: Facts) -> None:
        pass

    def result(self, stage: str, round_number: int | None, marker: Facts) -> None:
        pass

    def close(self) -> None:
        pass


class Watchers:
    """Several of them, each started and told on a thread of its own: what fails or hangs there reaches no one else.

    One that fails, or falls far behind, is left out from then on, and `lost` is told which and why.
    """

    def __init__(self, starts: Sequence[Callable[[], Watcher]], lost: Callable[[str], None]):
        self._ears = [_Ear(start, lost) for start in starts]

    def event(self, event: Facts) -> None:
        self._tell(lambda watcher: watcher.event(event))

    def progress(self, state: Facts) -> None:
        state = dict(state)
        self._tell(lambda watcher: watcher.progress(state))

    def result(self, stage: str, round_number: int | None, marker: Facts) -> None:
        self._tell(lambda watcher: watcher.result(stage, round_number, marker))

    def close(self) -> None:
        """Returns when all have heard all, or CLOSE_S have passed. Never called with a lock that `lost` needs."""
        self._tell(lambda watcher: watcher.close())
        until = time.monotonic() + CLOSE_S
        for ear in self._ears:
            ear.finish(until - time.monotonic())

    def _tell(self, told: Told) -> None:
        for ear in self._ears:
            ear.tell(told)


class _Ear:
    """One watcher's thread and what it has not heard yet."""

    def __init__(self, start: Callable[[], Watcher], lost: Callable[[str], None]):
        self._start = start
        self._lost = lost
        self._name = "a watcher"
        self._unheard: queue.Queue[Told | None] = queue.Queue(BEHIND)
        self._deaf = False
        self._thread = threading.Thread(target=self._listen, name="watcher", daemon=True)
        self._thread.start()

    def tell(self, told: Told | None) -> None:
        if self._deaf:
            return
        try:
            self._unheard.put_nowait(told)
        except queue.Full:
            self._leave_out(f"{self._name} is told no more of this run: it is {BEHIND} messages behind")

    def finish(self, seconds: float) -> None:
        self.tell(None)
        self._thread.join(max(0.0, seconds))

    def _listen(self) -> None:
        try:
            watcher = self._start()
            self._name = type(watcher).__name__
        except Exception as error:
            self._leave_out(f"a watcher of this run does not start: {type(error).__name__}: {error}")
            return
        while (told := self._unheard.get()) is not None:
            try:
                told(watcher)
            except Exception as error:  # whatever a tracker's library raises, the run is worth more
                self._leave_out(f"{self._name} is told no more of this run: {type(error).__name__}: {error}")
                return

    def _leave_out(self, message: str) -> None:
        self._deaf = True
        with contextlib.suppress(OSError):  # a disk that takes no warning will end the run by itself
            self._lost(message)
