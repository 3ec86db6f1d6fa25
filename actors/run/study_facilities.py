"""What runs of a study share: each model and each stage made once, one engine at a time, their training together.

Runs are threads of one coordinator. Training waits until no run can go on without it, so that what waits trains as one
Ray Train run.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from actors.data.engine_shards import EngineCall
from actors.engine.app_names import proxy_app, teacher_app
from actors.engine.engine_turns import EngineTurns
from actors.engine.proxy_engine import EngineSpec
from actors.run.facilities import Deployer, Facilities
from actors.training.training_runs import TrainRequest, train
from proxykd.config import ModelConfig, ResourceConfig, RunConfig, lora_slot_rank
from proxykd.errors import RunStoppedError
from proxykd.models.loading import initialise
from proxykd.models.run_models import voice
from proxykd.runs.journal import replay
from proxykd.runs.run_directory import RunDirectory, stage_key
from proxykd.runs.storage import READY, location, sha256_file
from proxykd.stages.table import stage_keys
from proxykd.study.adoption import link_tree
from proxykd.study.studies import StudyDirectory

MOST_REQUESTS = 64
"""Loops that one Ray Train run takes: what a death of its controller asks for again."""
CONSEQUENCE = "another run of the study has stopped or failed"


class NoRoutes:
    """A study shows itself; its runs open no routes of their own."""

    def open(self, run: RunDirectory, config: RunConfig) -> str | None:
        return None

    def close(self, run: RunDirectory) -> None:
        """Nothing was opened."""


class SharedModels:
    """Each model once, and hard links of it in the runs."""

    def __init__(self, study: StudyDirectory):
        self._study = study
        self._lock = threading.Lock()

    def initialise(self, model: ModelConfig, directory: Path, proxy: Path | None, thinking: bool) -> Path:
        with self._lock:
            kept = self._study.model(model, f"thinking: {thinking}" if proxy is None else voice(proxy))
            shared = initialise(model, kept, proxy, thinking)
        if not (directory / READY).exists():
            link_tree(shared, directory)
        return directory


class SharedEngines:
    """One engine at a time, which answers for all runs with its base model."""

    def __init__(self, deployer: Deployer, study: StudyDirectory):
        self._deployer = deployer
        self._study = study
        self._turns = EngineTurns(deployer.stop)

    @contextmanager
    def proxy(self, spec: EngineSpec, adapter: str | None, deadline_s: float) -> Iterator[EngineCall]:
        prefix = f"{self._study.id}-{_engine_key(spec)}"
        shared = replace(spec, prefix=prefix, adapters_dir=str(self._study.adapters))
        with self._turns.turn(proxy_app(prefix)):
            if adapter is not None:
                link_tree(location(spec.adapters_dir) / adapter, self._study.adapters / adapter)
            self._deployer.deploy_proxy(shared)
            yield EngineCall(proxy_app(prefix), shared.adapter_name(adapter), deadline_s)

    @contextmanager
    def teacher(self, spec: EngineSpec, model_name: str) -> Iterator[str]:
        with self._turns.turn(teacher_app(spec.prefix), keep=False):
            yield self._deployer.deploy_teacher(spec, model_name)

    def release(self, spec: EngineSpec) -> None:
        """Another run may need it still: the next that wants another engine stops it."""

    def rest(self, spec: EngineSpec) -> None:
        """Together stops it, for all runs that train."""

    def close(self) -> None:
        """Stops the one that is up, once nobody works with it."""
        self._turns.close()


def _engine_key(spec: EngineSpec) -> str:
    """Eight hex digits, alike for specs of which one engine answers for all: the same weights, sizes and slots."""
    rank = lora_slot_rank(spec.lora_rank) if spec.mode == "lora" else 0
    weights = sha256_file(location(spec.model) / "manifest.json")
    alike = replace(spec, model=weights, adapters_dir="", prefix="", lora_rank=rank)
    return hashlib.sha256(json.dumps(asdict(alike), sort_keys=True).encode()).hexdigest()[:8]


@dataclass
class _Waiting:
    request: TrainRequest
    over: bool = False
    error: BaseException | None = None


@dataclass
class _State:
    """What the threads of a study agree on, under one condition."""

    active: int
    pending: list[_Waiting] = field(default_factory=list)
    waiting: dict[int, Callable[[], bool]] = field(default_factory=dict)
    """By thread: whether it could go on."""
    at_work: set[str] = field(default_factory=set)
    finished: dict[str, RunDirectory] = field(default_factory=dict)
    begun: dict[str, str] = field(default_factory=dict)
    """Shared stages that an earlier coordinator left half done, by the run that has the half."""
    failed: bool = False


class Together:
    """Trainers and stages of runs side by side: one Ray Train run for all that wait to train; each stage made once for
    all that share it."""

    def __init__(
        self, name: str, runs: list[RunDirectory], resources: ResourceConfig, before_training: Callable[[], None]
    ):
        """`before_training` frees devices that the trainers need."""
        self._name = name
        self._resources = resources
        self._before_training = before_training
        self._condition = threading.Condition()
        self._state = _State(active=len(runs))
        self._keys = {run.id: stage_keys(run.config()) for run in runs}
        for run in runs:
            for path in run.stages.glob("*.json"):
                self._state.finished.setdefault(self._shared_key(run, path.stem), run)
            for entry in replay(run.journal):
                if entry["event"] == "STAGE_STARTED":
                    key = self._shared_key(run, stage_key(entry["stage"], entry["round"]))
                    self._state.begun.setdefault(key, run.id)
        threading.Thread(target=self._train_together, name="training", daemon=True).start()

    def train(self, name: str, request: TrainRequest, resources: ResourceConfig) -> None:
        waiting = _Waiting(request)
        with self._condition:
            self._state.pending.append(waiting)
            self._wait(lambda: waiting.over)
        if waiting.error is not None:
            raise waiting.error

    @contextmanager
    def turn(self, run: RunDirectory, key: str) -> Iterator[RunDirectory | None]:
        key, state = self._shared_key(run, key), self._state
        with self._condition:
            self._wait(lambda: key not in state.at_work and self._may_begin(run, key))
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

    def leave(self, failed: bool) -> None:
        """A run's thread has ended; after a failure the others stop where they are."""
        with self._condition:
            self._state.active -= 1
            self._state.failed |= failed
            self._condition.notify_all()

    def _may_begin(self, run: RunDirectory, key: str) -> bool:
        """Whether it has finished somewhere, or no other run has its half: what was paid for is not bought twice."""
        state = self._state
        return key in state.finished or state.begun.get(key, run.id) == run.id

    def _shared_key(self, run: RunDirectory, key: str) -> str:
        """Of stages that make the same; a run's own where nobody shares it. `key` is align-03, say."""
        stage = re.sub(r"-\d+$", "", key)
        return f"{key} {self._keys[run.id].get(stage, run.id)}"

    def _wait(self, ready: Callable[[], bool]) -> None:
        """Until `ready`, with the condition held.

        Raises:
            RunStoppedError: another run has failed.
        """
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
                batch = self._state.pending[:MOST_REQUESTS]
                del self._state.pending[:MOST_REQUESTS]
            error: BaseException | None = None
            try:
                self._before_training()
                name = f"{self._name}-{uuid.uuid4().hex[:8]}"
                train(name, [waiting.request for waiting in batch], self._resources)
            except BaseException as caught:
                error = caught
            with self._condition:
                for waiting in batch:
                    waiting.over, waiting.error = True, error
                self._condition.notify_all()


@dataclass(frozen=True)
class StudyFacilities:
    """Those of all runs of a study, and what its coordinator asks of them."""

    engines: SharedEngines
    together: Together
    facilities: Facilities

    @classmethod
    def of(
        cls, deployer: Deployer, study: StudyDirectory, runs: list[RunDirectory], resources: ResourceConfig
    ) -> StudyFacilities:
        engines = SharedEngines(deployer, study)
        stopped_to_train = resources.engine_while_training != "keep"
        together = Together(study.id, runs, resources, engines.close if stopped_to_train else lambda: None)
        return cls(
            engines, together, Facilities(NoRoutes(), SharedModels(study), engines, together, together, deployer)
        )
