"""What a stage is: one entry of the table, and the marker that it leaves when it is done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from proxykd.config import RunConfig
from proxykd.costs.demands import Demand, ProcessDemands
from proxykd.costs.estimator import Estimator, StageEstimate
from proxykd.runs.json_model import JsonModel, read_model
from proxykd.runs.run_directory import RunDirectory, stage_key
from proxykd.runs.storage import write_json

Milestone = tuple[str, int, float]
"""A name, its place on its own axis (a round, or a step of the student's curve), and the value."""


class Result(JsonModel):
    """What a stage has found; its fields are the `result` of the stage's marker."""

    def headline(self) -> dict[str, Any]:
        """The few numbers that are worth a line."""
        return {}

    def milestones(self) -> Iterator[Milestone]:
        """What trackers and metrics draw of it."""
        yield from ()


R = TypeVar("R", bound=Result)


@dataclass(frozen=True)
class Made(Generic[R]):
    """What a stage's body returns: its result, and what it went through."""

    result: R
    records: int = 0
    tokens: int = 0


class Finished(JsonModel, Generic[R]):
    """A stage's marker, stages/<key>.json."""

    stage: str
    round: int | None
    seconds: float
    """Over all attempts."""
    busy_seconds: float
    """Without what was waited for."""
    started_at: float
    attempts: int
    records: int
    tokens: int
    devices: int
    result: R
    adopted_from: str | None = None
    """The run that made it, where this one took it over."""

    @property
    def key(self) -> str:
        return stage_key(self.stage, self.round)

    def milestones(self) -> list[Milestone]:
        found = [(f"cost/{self.stage}_seconds", self.round or 0, self.seconds)]
        if self.tokens:
            found.append((f"cost/{self.stage}_tokens", self.round or 0, float(self.tokens)))
        return [*found, *self.result.milestones()]


def _always(_: RunConfig) -> bool:
    return True


def _nothing(*_: Any) -> list[Any]:
    return []


@dataclass(frozen=True)
class Stage(Generic[R]):
    """One stage of the method. `body` is "module:function" of what does it: Context, round -> Made."""

    name: str
    body: str
    result: type[R]
    when: Callable[[RunConfig], bool] = _always
    """Whether a run of this config has it."""
    rounds: Callable[[RunConfig], int] | None = None
    """How often at most, where it is done in rounds."""
    ended: str | None = None
    """Of a stage in rounds: "module:function" of Context and rounds done, which says why no other one follows, or
    None."""
    inputs: tuple[str, ...] = ()
    """The stages whose results it reads, of those that the run has."""
    settings: Callable[[RunConfig], Sequence[Any]] | None = None
    """All of the config that its result depends on beside its inputs'; None: no other run may take it over."""
    files: Callable[[RunDirectory, R], Iterable[Path]] = _nothing
    """The folders that it fills, the run's alone."""
    demands: Callable[[ProcessDemands], list[list[Demand]]] = _nothing
    """What it holds of the cluster at once, in each of its steps."""
    cost: Callable[[Estimator], list[StageEstimate]] = _nothing
    """What all rounds together take, step by step."""

    def numbers(self, config: RunConfig) -> Sequence[int | None]:
        """Its rounds, in a run of this config; [None] for a stage that is done once."""
        if not self.when(config):
            return ()
        return (None,) if self.rounds is None else range(1, self.rounds(config) + 1)

    def marker(self, run: RunDirectory, number: int | None = None) -> Path:
        return run.stages / f"{stage_key(self.name, number)}.json"

    def finished(self, run: RunDirectory, number: int | None = None) -> Finished[R] | None:
        """What the marker holds, or None.

        Raises:
            IntegrityError: it holds something else.
        """
        path = self.marker(run, number)
        return self.read(path) if path.exists() else None

    def read(self, path: Path) -> Finished[R]:
        """A marker of this stage.

        Raises:
            IntegrityError: another version of the code wrote it.
        """
        return read_model(path, Finished[self.result])  # type: ignore[name-defined]

    def write(self, run: RunDirectory, finished: Finished[R]) -> None:
        write_json(self.marker(run, finished.round), finished.model_dump())
