"""What a run's stages work with: its engines, its training, and what they tell of themselves."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from ray.exceptions import RayActorError

from actors.data.streams import EngineCall
from actors.engine.proxy_engine import EngineSpec
from actors.run.means import Alone
from actors.telemetry.events import EventLog
from actors.telemetry.progress import Reporter
from actors.training.training_runs import TrainTask
from proxykd import errors
from proxykd.data.corpus_store import manifest
from proxykd.data.soft_labels import LabelSource
from proxykd.errors import ProxykdError, StorageError
from proxykd.runs.adapter_catalogue import BASE
from proxykd.runs.journal import Journal
from proxykd.runs.storage import RunDirectory, delete, read_json, read_table
from proxykd.text.tokenizer import load_tokenizer
from proxykd.training.sampling import Room

Facts = dict[str, Any]
MAX_CONTROLLERS = 8
"""Ray Train controllers that may die in one stage before the run fails: what kills so many is no accident."""


class Workbench:
    """One run's means at hand. Engines start on first use and stay until they are stopped."""

    def __init__(
        self,
        run: RunDirectory,
        journal: Journal,
        means: Alone,
        events: EventLog,
        reporter: Reporter,
        refused: Callable[[], str | None],
    ):
        """`refused` says why a worker could not write to the run's storage, once one could not."""
        self.run = run
        self.config = run.config()
        self.journal = journal
        self.means = means
        self.events = events
        self.reporter = reporter
        self.data_pool = self.config.resources.pools.data
        self.busy_s = 0.0
        """Of the stage in hand, at work on its devices: without what was waited for."""
        self._refused = refused
        self._proxy_is_up = False

    @contextmanager
    def proxy_engine(self, adapter: str | None) -> Iterator[EngineCall]:
        """The proxy's deployment, started on first use and kept for all rounds (unless the config stops it to train).

        Not beside the warm-up: on two cores the two slowed each other by more than the start takes.
        """
        if not self._proxy_is_up:
            self.events.step("start the proxy's engine")
        with self._engine(EngineSpec.of_run(self.run, self.config), adapter) as call:
            self._proxy_is_up = True
            self.events.standing(engine=True)
            yield call

    @contextmanager
    def open_teachers_engine(self) -> Iterator[EngineCall]:
        self.events.step("start the open teacher's engine")
        with self._engine(EngineSpec.of_white_box(self.run, self.config), None) as call:
            yield call

    @contextmanager
    def _engine(self, spec: EngineSpec, adapter: str | None) -> Iterator[EngineCall]:
        with self.means.engine(spec, adapter, self.config.resources.request_deadline_s) as call:
            began = time.monotonic()
            yield call
            self.busy_s += time.monotonic() - began

    def room(self, max_new_tokens: int | None) -> Room:
        return Room(self.config.corpus.max_length, max_new_tokens)

    def train(self, key: str, loop: str, stream: Any, **task: Any) -> Facts:
        """One Ray Train run. A loop's own error comes back as what it is."""
        if self.config.resources.engine_while_training == "stop":
            self.stop_proxy()
        self.events.step("start the workers")
        self.events.standing(training=True)
        outcome_path = self.run.outcomes / f"{key}-{uuid.uuid4().hex[:8]}.json"
        facts = {
            "run": str(self.run.root),
            "key": key,
            "loop": loop,
            "outcome": str(outcome_path),
            "reporter": self.reporter,
        }
        try:
            self._until_trained(key, TrainTask(facts | task, stream))
        finally:
            self.events.standing(training=False)
        if (message := self._refused()) is not None:
            raise StorageError(message)
        outcome = read_json(outcome_path)
        delete(outcome_path)
        if "error" in outcome:
            known: type[ProxykdError] = getattr(errors, outcome["error"]["type"], ProxykdError)
            raise known(outcome["error"]["message"])
        self.busy_s += outcome["seconds"]
        result: Facts = outcome["result"]
        return result

    def _until_trained(self, key: str, task: TrainTask) -> None:
        """Ray Train restarts workers; its controller is restarted here."""
        for attempt in count(1):
            try:
                name = f"{self.run.id}-{key}-{self.journal.epoch}-{attempt}"
                self.means.train(name, task, self.config.resources)
                return
            except RayActorError as error:
                if attempt == MAX_CONTROLLERS:
                    raise
                self.events.emit("warning", message=f"{key}: Ray Train's controller died ({error}); started again")

    def stop_proxy(self) -> None:
        """Gives the engine's devices back."""
        self.events.standing(engine=False)
        self.means.stop_engine(EngineSpec.of_run(self.run, self.config))
        self._proxy_is_up = False

    def stop_open_teacher(self) -> None:
        if self.config.open_teacher is not None:
            self.means.stop_engine(EngineSpec.of_white_box(self.run, self.config))

    def close(self) -> None:
        """Withdraws what the run has on Serve: the last act, however it ends."""
        self.stop_open_teacher()
        self.stop_proxy()
        self.means.close_routes(self.run)

    def label_source(self, adapter: str | None) -> LabelSource:
        tokens = len(load_tokenizer(self.run.models / "proxy"))
        return LabelSource(adapter or BASE, manifest(self.run)["tokenizer"], tokens, self.config.score.top_k)

    def progress(self, done: float, total: float, unit: str) -> None:
        self.run.go_on()
        self.events.progress(done, total, unit, {})

    def cost(self, records: int = 0, tokens: int = 0) -> Facts:
        resources = self.config.resources
        devices = resources.trainer_workers if resources.device == "gpu" else len(os.sched_getaffinity(0))
        return {"records": records, "tokens": tokens, "devices": devices}


def completion_tokens(shards: list[Path]) -> int:
    import pyarrow.compute as pc

    return sum(pc.sum(pc.list_value_length(read_table(p, columns=["completion_ids"])[0])).as_py() or 0 for p in shards)
