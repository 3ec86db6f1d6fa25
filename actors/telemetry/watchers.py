"""Who hears what a run does: metrics, trackers, logs. None of them can stop a run."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from actors.telemetry.event_types import LoggedEvent
from actors.telemetry.live_state import LiveState
from proxykd.stages.stage import Finished

MAX_QUEUED = 10_000
"""Messages that wait for one watcher."""
CLOSE_S = 30.0


class Watcher(Protocol):
    """Each method may raise: then no further one is called, and the run goes on."""

    def event(self, logged: LoggedEvent) -> None:
        """An event of the run."""

    def progress(self, state: LiveState) -> None:
        """The stage in hand, how far it is and its latest metrics."""

    def result(self, finished: Finished[Any]) -> None:
        """A stage has finished, with this cost and result."""

    def close(self) -> None:
        """The coordinator ends."""


Message = Callable[[Watcher], None]
"""A call of one of a watcher's methods."""


class BaseWatcher:
    """A watcher that heeds nothing; others heed what they need."""

    def event(self, logged: LoggedEvent) -> None:
        pass

    def progress(self, state: LiveState) -> None:
        pass

    def result(self, finished: Finished[Any]) -> None:
        pass

    def close(self) -> None:
        pass


class Watchers:
    """Several of them, each started and called on a thread of its own: what fails or hangs there reaches no one else.

    One that fails, or falls far behind, is left out from then on, and `on_lost` is called with which and why.
    """

    def __init__(self, starts: Sequence[Callable[[], Watcher]], on_lost: Callable[[str], None]):
        self._subscribers = [_Subscriber(start, on_lost) for start in starts]

    def event(self, logged: LoggedEvent) -> None:
        self._send(lambda watcher: watcher.event(logged))

    def progress(self, state: LiveState) -> None:
        self._send(lambda watcher: watcher.progress(state))

    def result(self, finished: Finished[Any]) -> None:
        self._send(lambda watcher: watcher.result(finished))

    def close(self) -> None:
        """Returns when all have handled all, or CLOSE_S have passed. Never called with a lock that `on_lost` needs."""
        self._send(lambda watcher: watcher.close())
        deadline = time.monotonic() + CLOSE_S
        for subscriber in self._subscribers:
            subscriber.finish(deadline - time.monotonic())

    def _send(self, message: Message) -> None:
        for subscriber in self._subscribers:
            subscriber.send(message)


class _Subscriber:
    """One watcher's thread and the messages that wait for it."""

    def __init__(self, start: Callable[[], Watcher], on_lost: Callable[[str], None]):
        self._start = start
        self._on_lost = on_lost
        self._name = "a watcher"
        self._queue: queue.Queue[Message | None] = queue.Queue(MAX_QUEUED)
        self._left_out = False
        self._thread = threading.Thread(target=self._deliver, name="watcher", daemon=True)
        self._thread.start()

    def send(self, message: Message | None) -> None:
        """Queues a message; None ends the thread once all before it are handled."""
        if self._left_out:
            return
        try:
            self._queue.put_nowait(message)
        except queue.Full:
            self._leave_out(f"{self._name} is told no more of this run: it is {MAX_QUEUED} messages behind")

    def finish(self, seconds: float) -> None:
        """Returns when all messages are handled, or `seconds` have passed."""
        self.send(None)
        self._thread.join(max(0.0, seconds))

    def _deliver(self) -> None:
        try:
            watcher = self._start()
            self._name = type(watcher).__name__
        except Exception as error:
            self._leave_out(f"a watcher of this run does not start: {type(error).__name__}: {error}")
            return
        while (message := self._queue.get()) is not None:
            try:
                message(watcher)
            except Exception as error:  # whatever a tracker's library raises, the run is worth more
                self._leave_out(f"{self._name} is told no more of this run: {type(error).__name__}: {error}")
                return

    def _leave_out(self, message: str) -> None:
        self._left_out = True
        with contextlib.suppress(OSError):  # a disk that takes no warning will end the run by itself
            self._on_lost(message)
