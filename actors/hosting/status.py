"""What lies in a directory, a run or a study, and where it stands: from storage, and whether its coordinator lives."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from actors.hosting.local_cluster import running
from actors.hosting.serving import serving
from actors.telemetry.event_files import latest_events
from actors.telemetry.event_types import RunFailed, RunStarted, RunStopped
from actors.telemetry.live_state import Now, read_live
from proxykd.config import RunConfig
from proxykd.runs.journal import Entry, replay
from proxykd.runs.json_model import JsonModel
from proxykd.runs.run_directory import RunDirectory
from proxykd.stages.table import finished_stages
from proxykd.study.studies import StudyDirectory

RECENT = 100
"""Events among which a failure is the last word: nothing but a new start follows it, and what was under way beside."""


@dataclass(frozen=True)
class Work:
    """What a coordinator does in a directory: a run, or a study of many. `run` names journal, events and live state."""

    run: RunDirectory
    config: RunConfig
    """Whose resources and Redis it takes."""
    study: StudyDirectory | None = None

    @classmethod
    def at(cls, path: str | Path) -> Work:
        """Returns what lies there.

        Raises:
            RunError: neither a run nor a study lies there.
        """
        if StudyDirectory.is_one(path):
            study = StudyDirectory(path)
            return cls(RunDirectory(study.root), study.study().expand()[0].config, study)
        run = RunDirectory.open(path)
        return cls(run, run.config())

    @property
    def configs(self) -> list[RunConfig]:
        """Returns the config of every run that it does."""
        return [arm.config for arm in self.study.arms()] if self.study else [self.config]

    @property
    def stop_requests(self) -> list[Path]:
        """The files that ask it to stop."""
        return [run.stop_request for run in (self.run, *(self.study.runs() if self.study else ()))]

    @property
    def coordinator(self) -> str:
        """The class of its coordinator, module:name."""
        return "actors.run.study_coordinator:StudyCoordinator" if self.study else "actors.run.coordinator:Coordinator"


State = Literal["finished", "serving", "running", "failed", "stopped"]


class DoneLine(JsonModel):
    stage: str
    round: int | None
    seconds: float
    """Over all attempts."""


class RunStatus(JsonModel):
    """Where a run or a study stands."""

    run: str
    state: State
    alive: bool
    """Whether its coordinator lives."""
    served_at: str | None
    """Where `proxykd serve` answers on this machine, while the state is `serving`."""
    job: str | None
    """The Ray job that it was last."""
    epoch: int
    """Starts and restarts of its coordinator."""
    stages_done: list[DoneLine]
    runs: dict[str, bool] | None
    """Of a study: which of its runs have finished."""
    now: Now | None
    """The stage in hand."""
    error: str | None
    """What the last coordinator failed of."""


def finished(run: RunDirectory) -> bool:
    """Returns whether the run, or study, has come to its end."""
    return _finished(replay(run.journal))


def run_status(work: Work) -> RunStatus:
    """Returns where a run or a study stands, from storage alone and from whether its local Ray still runs."""
    run, entries, live = work.run, replay(work.run.journal), read_live(work.run)
    failed, served = _failure(run), serving(run.root)
    works_here = running(run.root) is not None and served is None
    alive = works_here or (live.alive and not _died_here(entries))
    return RunStatus(
        run=run.id,
        state=_state(_finished(entries), served is not None, alive, failed is not None),
        alive=alive,
        served_at=served.url if served else None,
        job=next((entry["job"] for entry in reversed(entries) if "job" in entry), None),
        epoch=entries[-1]["epoch"] if entries else 0,
        stages_done=[DoneLine(stage=d.stage, round=d.round, seconds=d.seconds) for d in finished_stages(run)],
        runs={one.id: finished(one) for one in work.study.runs()} if work.study else None,
        now=live.progress_json() if alive and live.stage else None,
        error=failed,
    )


def _state(finished: bool, served: bool, alive: bool, failed: bool) -> State:
    if served:
        return "serving"
    if finished:
        return "finished"
    return "running" if alive else "failed" if failed else "stopped"


def _failure(run: RunDirectory) -> str | None:
    """Returns the message of the failure that the last coordinator ended with, or None."""
    events = [logged.event for logged in latest_events(run.events, RECENT)]
    ends = [event for event in events if isinstance(event, RunStarted | RunStopped | RunFailed)]
    return ends[-1].message if ends and isinstance(ends[-1], RunFailed) else None


def _finished(entries: list[Entry]) -> bool:
    return any(entry["event"] == "RUN_FINISHED" for entry in entries)


def _died_here(entries: list[Entry]) -> bool:
    """Whether the run's last claim was by a local Ray of this machine, which running() knows better about."""
    claims = [entry for entry in entries if entry["event"] == "EPOCH_CLAIMED"]
    return bool(claims) and claims[-1].get("host") == socket.gethostname() and claims[-1].get("cluster_pid") is not None
