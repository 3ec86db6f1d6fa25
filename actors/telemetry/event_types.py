"""The events of a run, each by its type, and as the JSON entry that events/*.jsonl, the live view and REST hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self

Entry = dict[str, Any]


@dataclass(frozen=True)
class Event:
    """Something that has happened in a run. `name` is what its entry calls it."""

    name: ClassVar[str]

    def facts(self) -> Entry:
        """Returns its fields as its entry holds them."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Self:
        """Returns the event whose entry holds `facts`; a key that is no field is left out.

        Raises:
            KeyError: a field is missing.
        """
        return cls(**{one.name: facts[one.name] for one in fields(cls)})

    def summary(self) -> str:
        """Returns what a log says of it."""
        return self.name


@dataclass(frozen=True)
class RunStarted(Event):
    """A coordinator is at work; the run may be a study."""

    name: ClassVar[str] = "run_started"
    run: str
    epoch: int


@dataclass(frozen=True)
class RoutesOpen(Event):
    """The proxy's REST routes are up."""

    name: ClassVar[str] = "routes_open"
    url: str


@dataclass(frozen=True)
class MetricsOpen(Event):
    """Prometheus finds the run's metrics at `url`."""

    name: ClassVar[str] = "metrics_open"
    url: str


@dataclass(frozen=True)
class StageStarted(Event):
    name: ClassVar[str] = "stage_started"
    stage: str
    round: int | None


@dataclass(frozen=True)
class StageFinished(Event):
    name: ClassVar[str] = "stage_finished"
    stage: str
    round: int | None
    seconds: float
    """Over all attempts."""
    busy_seconds: float
    """Without what was waited for."""
    headline: dict[str, Any] = field(default_factory=dict)
    """The few numbers of the result that are worth a line; its keys stand in the entry beside the other fields."""

    def facts(self) -> Entry:
        facts = super().facts()
        del facts["headline"]
        return facts | self.headline

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Self:
        own = {one.name for one in fields(cls)}
        return super().from_facts({**facts, "headline": {key: facts[key] for key in facts if key not in own}})


@dataclass(frozen=True)
class StageAdopted(Event):
    """The stage's result is `donor`'s, a run that has made the very same."""

    name: ClassVar[str] = "stage_adopted"
    stage: str
    round: int | None
    donor: str


@dataclass(frozen=True)
class SampledAhead(Event):
    """While the round before was still looked at, the engine finished `made` of the round's `shards` of pairs."""

    name: ClassVar[str] = "sampled_ahead"
    round: int
    made: int
    shards: int
    seconds: float


@dataclass(frozen=True)
class AlignmentFinished(Event):
    """No further round follows; `adapter` is the aligned proxy's."""

    name: ClassVar[str] = "alignment_finished"
    adapter: str
    reason: str

    def summary(self) -> str:
        return self.reason


@dataclass(frozen=True)
class CorpusGrew(Event):
    """The followed data set has `records` more, which became segment `number` of the corpus."""

    name: ClassVar[str] = "corpus_grew"
    records: int
    number: int


@dataclass(frozen=True)
class Warned(Event):
    name: ClassVar[str] = "warning"
    message: str

    def summary(self) -> str:
        return self.message


@dataclass(frozen=True)
class RunFinished(Event):
    """`report` is the path of report.json."""

    name: ClassVar[str] = "finished"
    report: str


@dataclass(frozen=True)
class RunStopped(Event):
    """Somebody asked the run to stop, and it did."""

    name: ClassVar[str] = "stopped"
    reason: str

    def summary(self) -> str:
        return self.reason


@dataclass(frozen=True)
class RunFailed(Event):
    name: ClassVar[str] = "failed"
    error: str
    """The exception's type."""
    message: str
    traceback: str | None = None
    """Of a defect alone: a ProxykdError says all in its message. The entry has no such key where there is none."""

    def facts(self) -> Entry:
        return {key: value for key, value in super().facts().items() if value is not None}

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Self:
        return super().from_facts({"traceback": None, **facts})

    def summary(self) -> str:
        return self.message


RunEnded = RunFinished | RunStopped | RunFailed
"""The last event of a coordinator."""

EVENT_TYPES: dict[str, type[Event]] = {
    cls.name: cls
    for cls in (
        RunStarted, RoutesOpen, MetricsOpen, StageStarted, StageFinished, StageAdopted, SampledAhead, AlignmentFinished,
        CorpusGrew, Warned, RunFinished, RunStopped, RunFailed,
    )
}  # fmt: skip


@dataclass(frozen=True)
class UnknownEvent:
    """What an entry says that another version of the code wrote: its name is all that can be shown."""

    name: str
    values: Entry

    def facts(self) -> Entry:
        """Returns what else its entry holds."""
        return self.values

    def summary(self) -> str:
        """Returns its name."""
        return self.name


@dataclass(frozen=True)
class LoggedEvent:
    """An event as the log holds it."""

    segment: int
    """Its number in the log, from 1."""
    time: float
    """Seconds since the epoch, by the clock of the coordinator's machine."""
    event: Event | UnknownEvent
    run: str | None = None
    """In a study's log the run whose event it is, where it is one run's."""

    @classmethod
    def from_entry(cls, segment: int, entry: Entry) -> LoggedEvent:
        """Returns what an entry of events/*.jsonl says; an UnknownEvent where no type has its name and fields."""
        facts = {key: value for key, value in entry.items() if key not in ("segment", "time", "event")}
        known = EVENT_TYPES.get(entry["event"])
        own_run = known is not None and any(one.name == "run" for one in fields(known))
        run = None if own_run else facts.pop("run", None)
        unknown = UnknownEvent(entry["event"], facts)
        try:
            return cls(segment, entry["time"], known.from_facts(facts) if known else unknown, run)
        except KeyError:
            return cls(segment, entry["time"], unknown, run)

    def stored(self) -> Entry:
        """Returns the entry as its file holds it, whose name is the segment."""
        tag = {} if self.run is None else {"run": self.run}
        return {"time": self.time, "event": self.event.name, **tag, **self.event.facts()}

    def entry(self) -> Entry:
        """Returns the same with its segment, as the live view and REST have it."""
        return {"segment": self.segment, **self.stored()}
