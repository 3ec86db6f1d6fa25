"""The runs and studies under a folder, by id. A run of a study is `<study>.<run>`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from actors.hosting.status import DoneLine, RunStatus, Work, run_status
from actors.telemetry.live_state import Now, read_live
from proxykd.errors import IntegrityError, ProxykdError, RunError
from proxykd.report.outcome import outcome
from proxykd.report.overview import overview
from proxykd.report.overview_model import Overview
from proxykd.runs.json_model import JsonModel
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import location, read_json
from proxykd.stages.align import ALIGN
from proxykd.stages.evaluate import EVALUATE
from proxykd.study.studies import StudyDirectory
from services.access.refusals import ApiError

ID = re.compile(r"[a-z0-9][a-z0-9-]{0,199}")
MARKS = ("config.json", "study.json")
"""The file that makes a folder a run, or a study."""

Kind = Literal["run", "study"]


class UnreadableLine(JsonModel):
    """A run or study that cannot be read, and why."""

    id: str
    kind: Kind
    state: str
    error: str | None


class RunLine(UnreadableLine):
    """Where a run or study stands, in the words of RunStatus."""

    now: Now | None
    runs: dict[str, bool] | None
    stage: DoneLine | None
    """The last one that finished."""
    rounds: int
    seconds: float
    """Of all stages that are done."""
    started_at: float | None
    teacher: str
    result: str | None
    """What a run's student came to, in a few words (proxykd/report/outcome.py)."""


class RunPage(Overview):
    """All that a run's page shows."""

    directory: str | None
    """Where it lies, for who has its machine; None in a report, which is mailed around."""
    status: RunStatus
    history: list[dict[str, float | None]]
    """What the stage in hand has reported: `done`, and its measures."""


@dataclass(frozen=True)
class Library:
    """`only` names the one run that may be seen, where other people's lie beside it."""

    root: Path
    only: str | None = None

    @classmethod
    def at(cls, folder: str | Path) -> Library:
        """All that lies in a folder, or the one run or study that the folder is.

        Raises:
            RunError: there is no such folder.
        """
        root = location(folder)
        if not root.is_dir():
            raise RunError(f"{folder} is no folder; give the one that holds the runs (default: runs), or a run")
        if not any((root / mark).exists() for mark in MARKS):
            return cls(root)
        alone = root.resolve()
        return cls(alone.parent, alone.name)

    @classmethod
    def of_run(cls, run: RunDirectory) -> Library:
        return cls(run.root.parent, run.id)

    @property
    def address(self) -> str:
        """Where in the page to begin: at the list, or at the one run or study."""
        if self.only is None:
            return ""
        return f"#/{'studies' if StudyDirectory.is_one(self.root / self.only) else 'runs'}/{self.only}"

    def runs(self) -> list[RunLine | UnreadableLine]:
        """Returns a line for each run and study, newest first; one that cannot be read says why."""
        found = [self._line(path) for path in self._directories()]
        return sorted(found, key=lambda line: getattr(line, "started_at", None) or 0.0, reverse=True)

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

    def overview(self, run_id: str) -> RunPage:
        """Returns a run's numbers so far, where it stands, and what its stage in hand has reported.

        Raises:
            ApiError: 404, no run of that id lies here.
            IntegrityError: one of its files is torn, or of another version.
        """
        run = self.run(run_id)
        work = Work(run, run.config())
        return RunPage(
            **dict(overview(run)),
            directory=str(run.root),
            status=run_status(work),
            history=read_live(run).history or [],
        )

    def _directories(self) -> list[Path]:
        if self.only is not None:
            return [self.root / self.only]
        return [p for p in self.root.iterdir() if ID.fullmatch(p.name) and any((p / mark).exists() for mark in MARKS)]

    def _directory(self, name: str, mark: str) -> Path:
        path = self.root / name
        if not ID.fullmatch(name) or self.only not in (None, name) or not (path / mark).exists():
            raise ApiError(404, f"no {'study' if mark == 'study.json' else 'run'} {name[:200]!r} here")
        return path

    def _line(self, path: Path) -> RunLine | UnreadableLine:
        kind: Kind = "study" if StudyDirectory.is_one(path) else "run"
        try:
            work = Work.at(path)
            status = run_status(work)
            evaluated = EVALUATE.finished(work.run)
            journal = sorted(work.run.journal.glob("[0-9]*.json"))
            done = status.stages_done
            return RunLine(
                id=path.name,
                kind=kind,
                state=status.state,
                now=status.now,
                error=status.error,
                runs=status.runs,
                stage=done[-1] if done else None,
                rounds=sum(line.stage == ALIGN.name for line in done),
                seconds=sum(line.seconds for line in done),
                started_at=read_json(journal[0])["time"] if journal else None,
                teacher=work.config.teacher.model,
                result=outcome(evaluated.result).short if evaluated else None,
            )
        except (ProxykdError, IntegrityError, OSError, KeyError) as error:
            return UnreadableLine(id=path.name, kind=kind, state="unreadable", error=str(error))
