"""A study on one Ray: its runs in threads of one coordinator, each shared stage made once, their training together."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from actors.run.coordinator import Coordinator
from actors.run.imports import imported
from actors.telemetry.event_types import Event, RunFinished, RunStarted, StageFinished, Warned
from actors.telemetry.events import EventLog
from proxykd.config import RunConfig
from proxykd.errors import RunStoppedError
from proxykd.runs.journal import Journal
from proxykd.runs.run_directory import RunDirectory
from proxykd.study.studies import StudyDirectory

if TYPE_CHECKING:
    from actors.run.facilities import Deployer
    from actors.run.study_facilities import StudyFacilities


class _ArmLog(EventLog):
    """A run's own events, of which the study's log has the stages that were made, and every progress."""

    def __init__(self, run: RunDirectory, study: EventLog):
        super().__init__(run)
        self._run_id, self._study = run.id, study

    def emit(self, event: Event, run: str | None = None) -> None:
        super().emit(event, run)
        if isinstance(event, StageFinished | Warned):
            self._study.emit(event, self._run_id)

    def progress(self, done: float, total: float, unit: str, metrics: dict[str, Any], add: bool = False) -> None:
        super().progress(done, total, unit, metrics, add)
        self._study.progress(done, total, f"{unit} of {self._run_id}", metrics, add)


class StudyCoordinator(Coordinator):
    """Runs every arm with every seed, and writes the study's report."""

    def progress(
        self, run: str, done: float, total: float, unit: str, metrics: dict[str, Any], add: bool = False
    ) -> None:
        self._logs[run].progress(done, total, unit, metrics, add)

    @staticmethod
    def require_cluster(run: RunDirectory) -> None:
        from actors.cluster.capacity import require_cluster

        for one in StudyDirectory(run.root).runs():
            require_cluster(one)

    def _read_config(self) -> RunConfig:
        self._logs: dict[str, EventLog] = {}
        return StudyDirectory(self._run.root).study().expand()[0].config

    def _execute_on(self, deployer: Deployer, journal: Journal) -> None:
        from actors.run.study_facilities import CONSEQUENCE, StudyFacilities
        from proxykd.study.study_page import write_study_report

        study = StudyDirectory(self._run.root)
        runs = study.runs()
        for name in ("AutoTokenizer", "AutoModelForCausalLM"):  # its lazy imports do not bear threads
            imported(f"transformers:{name}")
        self._events.emit(RunStarted(study.id, journal.epoch))
        self._events.stage("study", None)
        self._logs |= {run.id: _ArmLog(run, self._events) for run in runs}
        shared = StudyFacilities.of(deployer, study, runs, self._config.resources)
        try:
            with ThreadPoolExecutor(len(runs)) as pool:
                ends = [pool.submit(self._one, run, shared) for run in runs]
            errors = [error for end in ends if (error := end.exception()) is not None]
            if errors:
                raise min(errors, key=lambda error: (isinstance(error, RunStoppedError), str(error) == CONSEQUENCE))
        finally:
            shared.engines.close()
        self._events.step("report")
        write_study_report(study)
        journal.append("RUN_FINISHED")
        self._events.emit(RunFinished(str(study.report)))

    def _one(self, run: RunDirectory, shared: StudyFacilities) -> None:
        from actors.run.context import Context
        from actors.run.pipeline import Pipeline

        failed = True
        try:
            run.sweep()
            log = self._logs[run.id]
            log.watch(self._watchers(run, self._config))
            own = Journal(run.journal, **self._claim())
            if not any(entry["event"] == "RUN_FINISHED" for entry in own.entries):
                Pipeline(Context(run, own, shared.facilities, log, self._reporter(run), self.refusal)).execute()
            failed = False
        finally:
            shared.together.leave(failed)
            with contextlib.suppress(OSError):  # a full disk takes no last word
                self._logs[run.id].close()
