"""Every training loop on gloo ranks, as Ray Train's workers run them but without Ray: one rank here, several spawned.

The shards and micro-batches of the ranks are unequal in number, so that a collective that only some of them enter shows
as what it is: the others wait, and after TIMEOUT_S the test fails.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from actors.training import train_loops
from proxykd.data.corpus_store import write_corpus
from proxykd.models.loading import initialise
from proxykd.runs.storage import RunDirectory
from proxykd.text.chat import ChatFormat
from proxykd.text.corpus import Row, read_corpus
from proxykd.text.tokenizer import load_tokenizer
from tests import tiny_model
from tests.small_run import run_config

Facts = dict[str, Any]
TIMEOUT_S = 60.0
"""Of one collective: what the slowest rank may do alone, and more."""


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
    chat = ChatFormat(load_tokenizer(run.models / "proxy"))
    write_corpus(run, config, read_corpus(config.corpus), chat)
    return run


class Ranks:
    """The loops of one run on this process' rank, each with what the stages before it left."""

    def __init__(self, root: str):
        self.run = RunDirectory.open(root)
        self.results: dict[str, Facts] = {}

    def __call__(self, key: str, loop: str, rows: list[Row], **task: Any) -> Facts:
        """The loop's result, as rank 0 has it, on every rank."""
        indexed = [{"index": i, **row} for i, row in enumerate(rows)]
        facts = {"run": str(self.run.root), "key": key, "loop": loop, "stream": indexed, "records": len(rows)}
        worker = train_loops.Worker(facts | task | {"reporter": lambda: _no_report})
        with mock.patch("ray.train.get_dataset_shard", Stream):
            result = train_loops.LOOPS[loop](worker)
        [self.results[key], *_] = worker.workers.gather_objects(result)
        return self.results[key]


def _no_report(*_: Any, **__: Any) -> None:
    """Stands where the coordinator takes progress."""


class Stream:
    """What Ray Data gives a worker: the rows in order, as tables."""

    def __init__(self, rows: list[Row]):
        self._rows = rows

    def iter_batches(self, batch_size: int, batch_format: str) -> Iterator[pa.Table]:
        assert batch_format == "pyarrow"
        for start in range(0, len(self._rows), batch_size):
            yield pa.Table.from_pylist(self._rows[start : start + batch_size])


def on_ranks(world: int, job: Callable[[], Any], folder: Path) -> Any:
    """What `job`, picklable, returns on rank 0 of `world` processes.

    Raises:
        the error of the first that fails, which is what waits for TIMEOUT_S.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mp.spawn(_rank, args=(world, job, str(folder)), nprocs=world)
    return torch.load(folder / "result.pt", weights_only=False)


def _rank(rank: int, world: int, job: Callable[[], Any], folder: str) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group(
        "gloo", rank=rank, world_size=world, init_method=store, timeout=timedelta(seconds=TIMEOUT_S)
    )
    result = job()
    if rank == 0:
        torch.save(result, f"{folder}/result.pt")
    dist.barrier()
    dist.destroy_process_group()
