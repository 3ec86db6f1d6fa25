"""What lies in a directory, a run or a study, and where it stands: from storage, and whether its coordinator lives."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.hosting.local_cluster import running
from actors.telemetry.events import events_before, gives_signs_of_life, read_live
from proxykd.config import RunConfig
from proxykd.report.run_report import finished_stages
from proxykd.runs.journal import Entry, replay
from proxykd.runs.storage import RunDirectory
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
        """Raises:
        RunError: neither a run nor a study lies there.
        """
        if StudyDirectory.is_one(path):
            study = StudyDirectory(path)
            return cls(RunDirectory(study.root), study.study().expand()[0].config, study)
        run = RunDirectory.open(path)
        return cls(run, run.config())

    @property
    def stop_requests(self) -> list[Path]:
        return [run.stop_request for run in (self.run, *(self.study.runs() if self.study else ()))]

    @property
    def coordinator(self) -> str:
        return "actors.run.study_coordinator:StudyCoordinator" if self.study else "actors.run.coordinator:Coordinator"


def finished(run: RunDirectory) -> bool:
    return _finished(replay(run.journal))


def run_status(work: Work) -> dict[str, Any]:
    """Where a run or a study stands, from storage alone; `alive` says whether its local Ray still runs."""
    run = work.run
    entries = replay(run.journal)
    ends = [e for e in events_before(run.events, None, RECENT) if e["event"] in ("failed", "stopped", "run_started")]
    failed = ends[-1]["message"] if ends and ends[-1]["event"] == "failed" else None
    alive = running(run.root) is not None or (gives_signs_of_life(run) and not _died_here(entries))
    live = read_live(run)
    live.pop("history", None)
    return {
        "run": run.id,
        "state": "finished" if _finished(entries) else "running" if alive else "failed" if failed else "stopped",
        "alive": alive,
        "job": next((entry["job"] for entry in reversed(entries) if "job" in entry), None),
        "epoch": entries[-1]["epoch"] if entries else 0,
        "stages_done": [{k: s[k] for k in ("stage", "round", "seconds")} for s in finished_stages(run)],
        "runs": {one.id: finished(one) for one in work.study.runs()} if work.study else None,
        "now": live if alive and live.get("stage") else None,
        "error": failed,
    }


def _finished(entries: list[Entry]) -> bool:
    return any(entry["event"] == "RUN_FINISHED" for entry in entries)


def _died_here(entries: list[Entry]) -> bool:
    """Whether the run's last claim was by a local Ray of this machine, which running() knows better about."""
    claims = [entry for entry in entries if entry["event"] == "EPOCH_CLAIMED"]
    return bool(claims) and claims[-1].get("host") == socket.gethostname() and claims[-1].get("cluster_pid") is not None
