"""What a stage's body works with: its run, its engines, its trainers, and the way to say how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from typing import TypeVar, get_type_hints

from ray.data import Dataset
from ray.exceptions import RayActorError

from actors.data.engine_shards import EngineCall, ShardMaker
from actors.engine.proxy_engine import EngineSpec
from actors.run.facilities import Facilities
from actors.telemetry.event_types import Warned
from actors.telemetry.events import EventLog
from actors.telemetry.progress import Reporter, Unheard
from actors.training.training_runs import TrainRequest
from actors.training.worker_loop import LoopCall
from proxykd import errors
from proxykd.data.corpus_store import manifest
from proxykd.data.soft_labels import LabelSource
from proxykd.errors import ProxykdError, RunError, StorageError
from proxykd.report.adapter_catalogue import adapters_in_force
from proxykd.runs.adapter_names import BASE
from proxykd.runs.journal import Journal
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import delete, read_json
from proxykd.stages.stage import R, Result, Stage
from proxykd.text.tokenizer import load_tokenizer
from proxykd.training.sampling import Room
from proxykd.training.worker import Worker

T = TypeVar("T")
Found = TypeVar("Found", bound=Result)
MAX_CONTROLLERS = 8
"""Ray Train controllers that may die in one stage before the run fails: what kills so many is no accident."""


class Context:
    """One run at work. Engines start on first use and stay until they are stopped."""

    def __init__(
        self,
        run: RunDirectory,
        journal: Journal,
        facilities: Facilities,
        events: EventLog,
        reporter: Reporter,
        refused: Callable[[], str | None],
    ):
        """`refused` says why a worker could not write to the run's storage, once one could not."""
        self.run = run
        self.config = run.config()
        self.journal = journal
        self.facilities = facilities
        self.events = events
        self.reporter = reporter
        self.data_pool = self.config.resources.pools.data
        self.spread = facilities.spread(self.data_pool)
        self.shards = ShardMaker(run, self.spread, reporter)
        self.shards_beside = ShardMaker(run, self.spread, Unheard)
        """For work beside the stage in hand."""
        self.busy_s = 0.0
        """Of the stage in hand, at work on its devices: without what was waited for."""
        self.proxy_is_up = False
        self._refused = refused

    def need(self, stage: Stage[R]) -> R:
        """The result of a stage that has finished before.

        Raises:
            RunError: it has not.
        """
        if (finished := stage.finished(self.run)) is None:
            raise RunError(f"{self.run.id}: the stage {stage.name} has not finished")
        return finished.result

    def aligned_adapter(self) -> str | None:
        """The proxy in force: that of the last promoted round, or of the warm-up; None before, or without alignment."""
        in_force = adapters_in_force(self.run)
        return str(in_force[-1]["adapter"]) if in_force else None

    @contextmanager
    def proxy_engine(self, adapter: str | None) -> Iterator[EngineCall]:
        """The proxy's deployment, started on first use and kept for all rounds (unless the config stops it to train).

        Not beside the warm-up: on two cores the two slowed each other by more than the start takes.
        """
        if not self.proxy_is_up:
            self.events.step("start the proxy's engine")
        with self._engine(EngineSpec.of_run(self.run, self.config), adapter) as call:
            self.proxy_is_up = True
            self.events.standing(engine=True)
            yield call

    def proxy_beside(self, adapter: str) -> AbstractContextManager[EngineCall]:
        """The proxy's deployment, which is up, for work beside the stage in hand."""
        spec = EngineSpec.of_run(self.run, self.config)
        return self.facilities.engines.proxy(spec, adapter, self.config.resources.request_deadline_s)

    @contextmanager
    def open_teachers_engine(self) -> Iterator[EngineCall]:
        self.events.step("start the open teacher's engine")
        with self._engine(EngineSpec.of_white_box(self.run, self.config), None) as call:
            yield call

    @contextmanager
    def _engine(self, spec: EngineSpec, adapter: str | None) -> Iterator[EngineCall]:
        with self.facilities.engines.proxy(spec, adapter, self.config.resources.request_deadline_s) as call:
            began = time.monotonic()
            yield call
            self.busy_s += time.monotonic() - began

    def room(self, max_new_tokens: int | None) -> Room:
        return Room(self.config.corpus.max_length, max_new_tokens)

    def train(self, key: str, loop: Callable[[Worker, T], Found], task: T, stream: Dataset | None = None) -> Found:
        """What the loop finds on the trainers, as one Ray Train run. `key` names its checkpoints.

        Raises:
            ProxykdError: the loop's own, as what it is.
            StorageError: the run's storage takes no more.
        """
        self._make_room()
        self.events.step("start the workers")
        self.events.standing(training=True)
        found: type[Found] = get_type_hints(loop)["return"]
        outcome_path = self.run.outcome(key)
        call = LoopCall(str(self.run.root), key, loop, task, str(outcome_path), self.reporter)
        try:
            self._until_trained(key, TrainRequest(call, stream))
        finally:
            self.events.standing(training=False)
        if (message := self._refused()) is not None:
            raise StorageError(message)
        outcome = read_json(outcome_path)
        for of_any_attempt in self.run.outcomes_of(key):
            delete(of_any_attempt)
        if "error" in outcome:
            known: type[ProxykdError] = getattr(errors, outcome["error"]["type"], ProxykdError)
            raise known(outcome["error"]["message"])
        self.busy_s += outcome["seconds"]
        return found.model_validate(outcome["result"])

    def _until_trained(self, key: str, request: TrainRequest) -> None:
        """Ray Train restarts workers; its controller is restarted here."""
        for attempt in count(1):
            try:
                name = f"{self.run.id}-{key}-{self.journal.epoch}-{attempt}"
                self.facilities.trainers.train(name, request, self.config.resources)
                return
            except RayActorError as error:
                if attempt == MAX_CONTROLLERS:
                    raise
                self.events.emit(Warned(f"{key}: Ray Train's controller died ({error}); started again"))

    def _make_room(self) -> None:
        """Gives the engine's devices to the trainers, where both have the same."""
        match self.config.resources.engine_while_training:
            case "stop":
                self.stop_proxy()
            case "sleep":
                self.events.step("put the proxy's engine to sleep")
                self.events.standing(engine=False)
                self.facilities.engines.rest(EngineSpec.of_run(self.run, self.config))
                self.proxy_is_up = False

    def stop_proxy(self) -> None:
        """Gives the engine's devices back."""
        self.events.standing(engine=False)
        self.facilities.engines.release(EngineSpec.of_run(self.run, self.config))
        self.proxy_is_up = False

    def stop_open_teacher(self) -> None:
        if self.config.open_teacher is not None:
            self.facilities.engines.release(EngineSpec.of_white_box(self.run, self.config))

    def stop_engines(self) -> None:
        """Gives all of the engines' devices back."""
        self.stop_open_teacher()
        self.stop_proxy()

    def close(self) -> None:
        """Withdraws what the run has on Serve: the last act, however it ends."""
        self.stop_engines()
        self.facilities.routes.close(self.run)

    def label_source(self, adapter: str | None) -> LabelSource:
        """How the labels of an adapter (None: the base's) are told apart on disk."""
        tokens = len(load_tokenizer(self.run.models / "proxy"))
        score = self.config.score
        return LabelSource(adapter or BASE, manifest(self.run)["tokenizer"], tokens, score.top_k, score.method)

    def progress(self, done: float, total: float, unit: str) -> None:
        """Raises:
        RunStoppedError: somebody asked the run to stop.
        """
        self.run.go_on()
        self.events.progress(done, total, unit, {})
