"""A run's pipeline in this process, without Ray: its loops run where they are asked for, on rows instead of streams."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from types import SimpleNamespace
from typing import Any

import pytest

from actors.engine.proxy_engine import Generation
from actors.run import alignment, baselines, distillation
from actors.run.context import Context
from actors.run.facilities import Facilities, NothingShared, OwnModels, OwnRoutes
from actors.telemetry.events import EventLog
from actors.training.training_runs import TrainRequest
from proxykd.data.ingest import Here
from proxykd.data.label_shards import LabelledGroup, labelled_rows
from proxykd.data.pairs import read_pairs
from proxykd.data.row_ranges import RowRange, read_ranges
from proxykd.data.soft_labels import LabelSource
from proxykd.models.batching import collate
from proxykd.models.loading import load_scorer
from proxykd.runs.adapter_names import adapter_name
from proxykd.runs.journal import Journal
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import location, write_json
from proxykd.text.corpus import Row
from proxykd.training.sampling import Room, sample_completions
from tests import tiny_model
from tests.small_run import run_config
from tests.stage_ranks import worker_of


def make_run(tiny: Path, folder: Path, **sections: Any) -> RunDirectory:
    """A run that needs no engine: rounds without the preference loss, labels by the trainers."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tiny_model.corpus_rows(48)))
    corpus = {"path": str(folder / "c.jsonl"), "max_length": 96, "shard_records": 8}
    plain: dict[str, Any] = {"alignment": {"rounds": 2, "preference": False, "global_batch": 8}}
    plain |= {"score": {"source": "trainer"}, "resources": {"trainer_threads": 1}}
    return RunDirectory.create(run_config(str(tiny), str(folder / "runs"), **{"corpus": corpus} | plain | sections))


class Trainers:
    """Runs each loop here. `asked` are the keys, `streamed` the rows by key; `fail_at` is a key that fails."""

    def __init__(self, fail_at: str | None = None):
        self.asked: list[str] = []
        self.streamed: dict[str, list[Row]] = {}
        self.fail_at = fail_at

    def train(self, name: str, request: TrainRequest, resources: Any) -> None:
        call, rows = request.call, list(request.stream or [])  # type: ignore[call-overload]
        self.asked.append(call.key)
        self.streamed[call.key] = rows
        if call.key == self.fail_at:
            raise OSError(f"the machine dies in {call.key}")
        worker = worker_of(RunDirectory.open(call.run), call.key, rows)
        result = call.loop(worker, call.task)
        write_json(location(call.outcome), {"result": result.model_dump(), "seconds": 1.0})


class Lender:
    """Another run, which has finished every stage of the named."""

    def __init__(self, donor: RunDirectory, stages: list[str]):
        self.donor, self.stages = donor, stages

    @contextmanager
    def turn(self, run: RunDirectory, key: str) -> Iterator[RunDirectory | None]:
        yield self.donor if key in self.stages else None


class Deployer:
    """Serves nothing."""

    def serve_run(self, *_: Any) -> None:
        pass

    def stop(self, _: str) -> None:
        pass

    def write_page(self, _: RunDirectory) -> None:
        pass


class NoEngines:
    """There is none, and none is needed."""

    def release(self, _: Any) -> None:
        pass


class Untold:
    """Takes progress, and tells nobody."""

    def add(self, *_: Any) -> None:
        pass


def context_of(run: RunDirectory, trainers: Any, sharing: Any = None, own_engines: Any = None) -> Context:
    deployer: Any = Deployer()
    engines: Any = own_engines or NoEngines()
    shared = sharing or NothingShared()
    facilities = Facilities(OwnRoutes(deployer), OwnModels(), engines, trainers, shared, deployer, lambda _: Here())
    journal = Journal(run.journal, host="here", job=None, cluster_pid=None)
    return Context(run, journal, facilities, EventLog(run), Untold, lambda: None)  # type: ignore[arg-type]


def stream_rows(patch: pytest.MonkeyPatch) -> None:
    """Streams become plain lists of rows."""

    def corpus(ranges: list[RowRange], _: str | None = None) -> list[Row]:
        return read_ranges(ranges)

    def labelled(groups: list[LabelledGroup], source: LabelSource, trust: Any, _: str | None = None) -> list[Row]:
        return [row for group in groups for row in labelled_rows(group, source, trust)]

    def pairs(shards: list[RowRange], _: str | None = None) -> list[Row]:
        rows = [row for shard in shards for row in read_pairs(location(shard.path))]
        return [row | {"index": index} for index, row in enumerate(rows)]

    for module in (alignment, distillation, baselines):
        patch.setattr(module, "stream_corpus", corpus)
    patch.setattr(alignment, "stream_pairs", pairs)
    patch.setattr(distillation, "stream_distillation", labelled)


class OwnAnswers:
    """The proxy's own forward passes, where a run would call its engine."""

    def __init__(self, run: RunDirectory, adapter: str):
        self.adapter = adapter_name(run.id, adapter)
        self._scorer = load_scorer(
            run.models / "proxy", run.config().proxy, adapter=run.adapters / adapter, trainable=False
        )
        self._lock = Lock()

    def __call__(self, method: str, prompts: list[list[int]], **request: Any) -> list[Any]:
        with self._lock:
            return list(getattr(self, f"_{method}")(prompts, **request))

    def _generate(self, prompts: list[list[int]], max_tokens: list[int], seeds: list[int]) -> Iterator[Generation]:
        for ids, most, seed in zip(prompts, max_tokens, seeds, strict=True):
            drawn = sample_completions(self._scorer, [ids], Room(len(ids) + most), seed)[0]
            yield Generation(drawn, True, self.adapter)

    def _score(self, prompts: list[list[int]], completions: list[list[int]], top_k: int) -> Iterator[Any]:
        for prompt, completion in zip(prompts, completions, strict=True):
            scores = self._scorer.score(collate([prompt], [completion]))
            yield SimpleNamespace(token_logps_T=scores.token_logps_N.tolist())


class OwnEngines(NoEngines):
    """The run's proxies, in this process. `asked` are their adapters, in order."""

    def __init__(self, run: RunDirectory):
        self._run = run
        self.asked: list[str] = []

    @contextmanager
    def proxy(self, _: Any, adapter: str, __: float) -> Iterator[OwnAnswers]:
        self.asked.append(adapter)
        yield OwnAnswers(self._run, adapter)


def answer_here(patch: pytest.MonkeyPatch) -> None:
    """Prompts are answered in this process."""

    @contextmanager
    def engine(context: Context, adapter: str) -> Iterator[OwnAnswers]:
        yield OwnAnswers(context.run, adapter)

    patch.setattr(Context, "proxy_engine", engine)
