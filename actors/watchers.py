"""Who is told what a run does: metrics, trackers, logs. None of them can stop a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

Facts = dict[str, Any]


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
    """Several of them, started here. One that fails is left out from then on, and `lost` is told which and why."""

    def __init__(self, starts: Sequence[Callable[[], Watcher]], lost: Callable[[str], None]):
        self._lost = lost
        self._watchers: list[Watcher] = []
        for start in starts:
            try:
                self._watchers.append(start())
            except Exception as error:
                lost(f"a watcher of this run does not start: {type(error).__name__}: {error}")

    def event(self, event: Facts) -> None:
        self._tell(lambda watcher: watcher.event(event))

    def progress(self, state: Facts) -> None:
        self._tell(lambda watcher: watcher.progress(state))

    def result(self, stage: str, round_number: int | None, marker: Facts) -> None:
        self._tell(lambda watcher: watcher.result(stage, round_number, marker))

    def close(self) -> None:
        self._tell(lambda watcher: watcher.close())

    def _tell(self, told: Callable[[Watcher], None]) -> None:
        for watcher in tuple(self._watchers):
            try:
                told(watcher)
            except Exception as error:  # whatever a tracker's library raises, the run is worth more
                self._watchers.remove(watcher)
                self._lost(f"{type(watcher).__name__} is told no more of this run: {type(error).__name__}: {error}")
