"""The latest progress of a run, in one small file: the stage in hand, how far it is, what its step has reported."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Self

from pydantic import PlainSerializer

from proxykd.errors import IntegrityError
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import read_json

LOST_AFTER_S = 60.0


class History:
    """What a step has reported so far, thinned: at most MOST points, evenly over the whole."""

    MOST = 240

    def __init__(self) -> None:
        self.points: list[dict[str, float]] = []
        self._every, self._reports = 1, 0

    def add(self, done: float, metrics: Mapping[str, float]) -> None:
        if self._reports % self._every == 0:
            self.points.append({"done": done, **metrics})
        self._reports += 1
        if len(self.points) > self.MOST:
            self.points, self._every = self.points[::2], 2 * self._every


@dataclass(frozen=True)
class LiveState:
    """What live.json, the live view's state and REST's `now` hold. Empty where nothing was at work."""

    time: float | None = None
    """When it was written, seconds since the epoch."""
    stage: str | None = None
    """None between stages."""
    round: int | None = None
    started: float | None = None
    """When this coordinator began the stage; None while it has not yet, after it took over a stage half done."""
    done: float = 0.0
    total: float = 0.0
    """0 while nobody knows."""
    unit: str | None = None
    metrics: dict[str, float] | None = None
    """The latest of the step's measures; None before any step."""
    step: str | None = None
    """Within the stage: sample, train, ..."""
    step_started: float | None = None
    spent: float | None = None
    """Seconds of the stage so far, over all attempts."""
    history: list[dict[str, float]] | None = None
    """What the step has reported so far: `done` and its measures, thinned."""
    engine: bool | None = None
    """The proxy's engine is up."""
    training: bool | None = None
    """A Ray Train run is at work."""
    ended: bool = False
    """The last coordinator left the stage in hand."""

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Self:
        """Returns what the JSON object says; a key that is no field is left out."""
        names = {one.name for one in fields(cls)}
        return cls(**{key: value for key, value in facts.items() if key in names})

    def to_json(self) -> dict[str, Any]:
        """Returns the JSON object: what is known, a stage with its round, and how far it is once it has begun."""
        absent = set() if self.started is not None else {"done", "total"}
        absent |= set() if self.ended else {"ended"}
        facts = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in absent}
        kept = {"round"} if self.stage is not None else set()
        return {key: value for key, value in facts.items() if value is not None or key in kept}

    def progress_json(self) -> dict[str, Any]:
        """Returns the JSON object without the history: what REST calls `now`."""
        return {key: value for key, value in self.to_json().items() if key != "history"}

    @property
    def alive(self) -> bool:
        """Whether a coordinator wrote it within the last minute, by the clocks of both machines."""
        return self.time is not None and not self.ended and abs(time.time() - self.time) < LOST_AFTER_S


Now = Annotated[LiveState, PlainSerializer(LiveState.progress_json)]
"""The stage in hand, as a field of what REST answers."""


def read_live(run: RunDirectory) -> LiveState:
    """Returns the latest progress, an empty one where nothing was at work or a fault of the disk tore the file."""
    try:
        return LiveState.from_json(read_json(run.live))
    except (FileNotFoundError, IntegrityError):  # it is only a view
        return LiveState()


def gives_signs_of_life(run: RunDirectory) -> bool:
    """Returns whether a coordinator wrote within the last minute, by the clocks of both machines."""
    return read_live(run).alive
