"""A study on one Ray: its runs in threads of one coordinator, each shared stage made once, their training together."""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from actors.data.streams import EngineCall
from actors.engine.app_names import proxy_app
from actors.engine.engine_turns import EngineTurns
from actors.engine.proxy_engine import EngineSpec
from actors.run.coordinator import Coordinator, imported
from actors.run.means import Alone, Deployer
from actors.run.pipeline import Pipeline
from actors.run.workbench import Workbench
from actors.telemetry.events import EventLog
from actors.training.training_runs import TrainTask, train
from proxykd.config import ModelConfig, ResourceConfig, RunConfig
from proxykd.errors import RunStoppedError
from proxykd.models.loading import initialise
from proxykd.models.run_models import voice
from proxykd.runs.journal import Journal
from proxykd.runs.storage import READY, RunDirectory, sha256_file, stage_key
from proxykd.study.adoption import take
from proxykd.study.studies import StudyDirectory, stage_keys
from proxykd.study.study_page import write_study_report

MOST_TASKS = 64
"""Stages that one Ray Train run takes: what a death of its controller asks for again."""
CONSEQUENCE = "another run of the study has stopped or failed"


@dataclass
class _Request:
    task: TrainTask
    over: bool = False
    error: BaseException | None = None


@dataclass
class _State:
    """What the threads of a study agree on, under one condition."""

    active: int
    pending: list[_Request] = field(default_factory=list)
    waiting: dict[int, Callable[[], bool]] = field(default_factory=dict)
    """By thread: whether it could go on."""
    at_work: set[str] = field(default_factory=set)
    finished: dict[str, RunDirectory] = field(default_factory=dict)
    failed: bool = False


class Together(Alone):
    """The means of runs side by side: one engine at a time, which answers for all runs with its base model; one Ray
    Train run for all that wait to train; each stage made once for all that share it."""

    def __init__(self, deployer: Deployer, study: StudyDirectory, runs: list[RunDirectory], resources: ResourceConfig):
        super().__init__(deployer)
        self._study = study
        self._resources = resources
        self._condition = threading.Condition()
        self._state = _State(active=len(runs))
        self._keys = {run.id: stage_keys(run.config()) for run in runs}
        self._engines = EngineTurns(lambda app: self.deployer.stop(app))
        self._models = threading.Lock()
        for run in runs:
            for path in run.stages.glob("*.json"):
                stage, _, number = path.stem.partition("-")
                self._state.finished.setdefault(self._key(run, stage, int(number) if number else None), run)
        threading.Thread(target=self._train_together, name="training", daemon=True).start()

    # -- what a pipeline asks for ------------------------------------------------------------------------------------

    def open_routes(self, run: RunDirectory, config: RunConfig) -> str | None:
        return None

    def close_routes(self, run: RunDirectory) -> None:
        pass

    def initialise(self, model: ModelConfig, directory: Path, proxy: Path | None, thinking: bool) -> Path:
        """Each model once, and hard links of it in the runs."""
        with self._models:
            kept = self._study.model(model, f"thinking: {thinking}" if proxy is None else voice(proxy))
            shared = initialise(model, kept, proxy, thinking)
        if not (directory / READY).exists():
            take(shared, directory)
        return directory

    @contextmanager
    def engine(self, spec: EngineSpec, adapter: str | None, deadline_s: float) -> Iterator[EngineCall]:
        model = Path(spec.model)
        prefix = f"{self._study.id}-{sha256_file(model / 'manifest.json')[:8]}"
        if adapter is not None:
            take(Path(spec.adapters_dir) / adapter, self._study.adapters / adapter)
        shared = replace(spec, prefix=prefix, adapters_dir=str(self._study.adapters))
        with self._engines.turn(proxy_app(prefix)):
            self.deployer.deploy_proxy(shared)
            yield EngineCall(proxy_app(prefix), shared.adapter_name(adapter), deadline_s)

    def stop_engine(self, spec: EngineSpec) -> None:
        """Another run may need it still."""

    def train(self, name: str, task: TrainTask, resources: ResourceConfig) -> None:
        request = _Request(task)
        with self._condition:
            self._state.pending.append(request)
            self._wait(lambda: request.over)
        if request.error is not None:
            raise request.error

    @contextmanager
    def turn(self, run: RunDirectory, stage: str, round_number: int | None) -> Iterator[RunDirectory | None]:
        key, state = self._key(run, stage, round_number), self._state
        with self._condition:
            self._wait(lambda: key not in state.at_work)
            donor = state.finished.get(key)
            if donor is None:
                state.at_work.add(key)
        try:
            yield donor
            with self._condition:
                state.finished.setdefault(key, run)
        finally:
            with self._condition:
                if donor is None:
                    state.at_work.discard(key)
                self._condition.notify_all()

    # -- what the coordinator asks for -------------------------------------------------------------------------------

    def leave(self, failed: bool) -> None:
        """A pipeline has ended; after a failure the others stop where they are."""
        with self._condition:
            self._state.active -= 1
            self._state.failed |= failed
            self._condition.notify_all()

    def close(self) -> None:
        self._engines.close()

    def _key(self, run: RunDirectory, stage: str, round_number: int | None) -> str:
        """Of stages that make the same; a run's own where nobody shares it."""
        shared = self._keys[run.id].get(stage, run.id)
        return f"{stage_key(stage, round_number)} {shared}"

    def _wait(self, ready: Callable[[], bool]) -> None:
        """Until `ready`, with the condition held. Raises RunStoppedError once another run has failed."""
        state, me = self._state, threading.get_ident()
        state.waiting[me] = ready
        self._condition.notify_all()
        try:
            self._condition.wait_for(lambda: ready() or state.failed)
        finally:
            del state.waiting[me]
        if state.failed and not ready():
            raise RunStoppedError(CONSEQUENCE)

    def _nobody_goes_on(self) -> bool:
        state = self._state
        blocked = len(state.waiting) == state.active and not any(ready() for ready in state.waiting.values())
        return bool(state.pending) and blocked and not state.failed

    def _train_together(self) -> None:
        """Takes what waits to train as soon as no run can go on without it."""
        while True:
            with self._condition:
                self._condition.wait_for(self._nobody_goes_on)
                batch = self._state.pending[:MOST_TASKS]
                del self._state.pending[:MOST_TASKS]
            if self._resources.engine_while_training == "stop":
                self.close()
            error: BaseException | None = None
            try:
                name = f"{self._study.id}-{uuid.uuid4().hex[:8]}"
                train(name, [request.task for request in batch], self._resources)
            except BaseException as caught:
                error = caught
            with self._condition:
                for request in batch:
                    request.over, request.error = True, error
                self._condition.notify_all()


class _ArmLog(EventLog):
    """A run's own events, of which the study's log has the stages that were made, and every progress."""

    def __init__(self, run: RunDirectory, study: EventLog):
        super().__init__(run)
        self._run_id, self._study = run.id, study

    def emit(self, event: str, **facts: Any) -> None:
        super().emit(event, **facts)
        if event in ("stage_finished", "warning"):
            self._study.emit(event, run=self._run_id, **facts)

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

        require_cluster(StudyDirectory(run.root).runs()[0])

    def _read_config(self) -> RunConfig:
        self._logs: dict[str, EventLog] = {}
        return StudyDirectory(self._run.root).study().expand()[0].config

    def _execute_on(self, deployer: Deployer, journal: Journal) -> None:
        study = StudyDirectory(self._run.root)
        runs = study.runs()
        for name in ("AutoTokenizer", "AutoModelForCausalLM"):  # its lazy imports do not bear threads
            imported(f"transformers:{name}")
        self._events.emit("run_started", run=study.id, epoch=journal.epoch)
        self._events.stage("study", None)
        self._logs |= {run.id: _ArmLog(run, self._events) for run in runs}
        means = Together(deployer, study, runs, self._config.resources)
        try:
            with ThreadPoolExecutor(len(runs)) as pool:
                ends = [pool.submit(self._one, run, means) for run in runs]
            errors = [error for end in ends if (error := end.exception()) is not None]
            if errors:
                raise min(errors, key=lambda error: (isinstance(error, RunStoppedError), str(error) == CONSEQUENCE))
        finally:
            means.close()
        self._events.step("report")
        write_study_report(study)
        journal.append("RUN_FINISHED")
        self._events.emit("finished", report=str(study.report))

    def _one(self, run: RunDirectory, means: Together) -> None:
        failed = True
        try:
            run.sweep()
            log = self._logs[run.id]
            log.watch(self._watchers(run, self._config))
            own = Journal(run.journal, **self._claim())
            if not any(entry["event"] == "RUN_FINISHED" for entry in own.entries):
                Pipeline(Workbench(run, own, means, log, self._reporter(run), self.refusal)).execute()
            failed = False
        finally:
            means.leave(failed)
            with contextlib.suppress(OSError):  # a full disk takes no last word
                self._logs[run.id].close()
