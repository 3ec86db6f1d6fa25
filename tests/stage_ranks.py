"""Every training loop on gloo ranks, as Ray Train's workers run them but without Ray: one rank here, several by tests/forks.py.

The shards and micro-batches of the ranks are unequal in number, so that a collective that only some of them enter shows
as what it is: the others wait, and after a while the test fails.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from proxykd.data.corpus_segments import source_of
from proxykd.data.corpus_store import write_corpus
from proxykd.models.loading import initialise
from proxykd.runs.run_directory import RunDirectory
from proxykd.stages.stage import Result
from proxykd.text.corpus import Row
from proxykd.training.worker import Worker
from tests import tiny_model
from tests.small_run import run_config


def make_run(source: Path, folder: Path, **sections: Any) -> RunDirectory:
    """A run with its models and corpus: three shards of unequal length to distil from."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = tiny_model.corpus_rows(48)
    for i, row in enumerate(rows):
        row["completion"] = " ".join([row["completion"]] * (1 + i % 5))
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = {"path": str(folder / "corpus.jsonl"), "max_length": 96, "shard_records": 6}
    config = run_config(str(source), str(folder / "runs"), corpus=corpus, **sections)
    run = RunDirectory.create(config)
    for name, model in config.models.items():
        initialise(model, run.models / name)
    write_corpus(run, config, source_of(config), run.models / "proxy")
    return run


class Ranks:
    """The loops of one run on this process' rank, each with what the stages before it left."""

    def __init__(self, root: str):
        self.run = RunDirectory.open(root)
        self.results: dict[str, Any] = {}

    def __call__(self, key: str, loop: Callable[[Worker, Any], Result], task: Any, rows: list[Row]) -> Any:
        """The loop's result, as rank 0 has it, on every rank."""
        worker = worker_of(self.run, key, rows)
        [self.results[key], *_] = worker.workers.gather_objects(loop(worker, task))
        return self.results[key]


def worker_of(run: RunDirectory, key: str, rows: list[Row]) -> Worker:
    """A worker that streams the rows, in order and numbered, and tells its progress to nobody."""

    def stream(size: int) -> Iterator[pa.Table]:
        for start in range(0, len(rows), size):
            yield pa.Table.from_pylist(
                [{"index": start + i, **row} for i, row in enumerate(rows[start : start + size])]
            )

    return Worker(run, key, torch.device("cpu"), lambda *_, **__: None, stream)
