"""The runs and studies under a folder, by id. A run of a study is `<study>.<run>`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.hosting.status import Work, run_status
from actors.telemetry.events import read_live
from proxykd.errors import IntegrityError, ProxykdError, RunError
from proxykd.report.overview import overview
from proxykd.runs.storage import RunDirectory, location, read_json
from proxykd.study.studies import StudyDirectory
from services.access.refusals import ApiError

ID = re.compile(r"[a-z0-9][a-z0-9-]{0,199}")

Facts = dict[str, Any]


@dataclass(frozen=True)
class Library:
    """`only` names the one run that may be seen, where other people's lie beside it."""

    root: Path
    only: str | None = None

    @classmethod
    def at(cls, folder: str | Path) -> Library:
        """Raises:
        RunError: there is no such folder.
        """
        root = location(folder)
        if not root.is_dir():
            raise RunError(f"{folder} is no folder; give the one that holds the runs (default: runs)")
        return cls(root)

    @classmethod
    def of_run(cls, run: RunDirectory) -> Library:
        return cls(run.root.parent, run.id)

    def runs(self) -> list[Facts]:
        """A line for each run and study, newest first; one that cannot be read says why."""
        found = [self._line(path) for path in self._directories()]
        return sorted(found, key=lambda line: line.get("started_at") or 0.0, reverse=True)

    def run(self, run_id: str) -> RunDirectory:
        """Raises:
        ApiError: 404, no run of that id lies here.
        """
        study, dot, arm = run_id.rpartition(".")
        parent = self._directory(study, "study.json") / "runs" if dot else self.root
        if dot and not ID.fullmatch(arm):
            raise ApiError(404, f"no run {run_id[:200]!r} here")
        path = parent / arm if dot else self._directory(run_id, "config.json")
        if not (path / "config.json").exists():
            raise ApiError(404, f"no run {run_id[:200]!r} here")
        return RunDirectory(path)

    def study(self, study_id: str) -> StudyDirectory:
        """Raises:
        ApiError: 404, no study of that id lies here.
        """
        return StudyDirectory(self._directory(study_id, "study.json"))

    def overview(self, run_id: str) -> Facts:
        """All that a run's page shows: its numbers so far, where it stands, and what its stage in hand has reported."""
        run = self.run(run_id)
        work = Work(run, run.config())
        live = read_live(run)
        return {"status": run_status(work), "history": live.get("history", []), **overview(run)}

    def _directories(self) -> list[Path]:
        if self.only is not None:
            return [self.root / self.only]
        marks = ("config.json", "study.json")
        return [p for p in self.root.iterdir() if ID.fullmatch(p.name) and any((p / mark).exists() for mark in marks)]

    def _directory(self, name: str, mark: str) -> Path:
        path = self.root / name
        if not ID.fullmatch(name) or self.only not in (None, name) or not (path / mark).exists():
            raise ApiError(404, f"no {'study' if mark == 'study.json' else 'run'} {name[:200]!r} here")
        return path

    def _line(self, path: Path) -> Facts:
        kind = "study" if StudyDirectory.is_one(path) else "run"
        try:
            work = Work.at(path)
            status = run_status(work)
            journal = sorted(work.run.journal.glob("[0-9]*.json"))
            return {
                "id": path.name,
                "kind": kind,
                **{key: status[key] for key in ("state", "now", "error", "runs")},
                "stage": _last(status["stages_done"]),
                "rounds": sum(stage["stage"] == "align" for stage in status["stages_done"]),
                "seconds": sum(stage["seconds"] for stage in status["stages_done"]),
                "started_at": read_json(journal[0])["time"] if journal else None,
                "teacher": work.config.teacher.model,
            }
        except (ProxykdError, IntegrityError, OSError, KeyError) as error:
            return {"id": path.name, "kind": kind, "state": "unreadable", "error": str(error)}


def _last(stages: list[Facts]) -> Facts | None:
    return stages[-1] if stages else None
