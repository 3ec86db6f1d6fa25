"""Ray Data: sampling and scoring onto the proxy's deployment, shard by shard, and what the Train workers stream.

A shard is one file with its marker. Only missing shards are asked for, so that running again is resuming.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray import serve
from ray.exceptions import RayActorError

from actors.cluster.placement import in_pool
from actors.engine.proxy_engine import Generation
from actors.telemetry.progress import Reporter
from proxykd.config import AlignmentConfig
from proxykd.data.corpus_store import write_rows_shard
from proxykd.data.label_shards import LabelledGroup, labelled_rows, write_soft_labels
from proxykd.data.pairs import read_pairs, write_pairs
from proxykd.data.row_ranges import RowRange, read_ranges, require_there
from proxykd.data.soft_labels import LabelSource
from proxykd.errors import EngineError, ProxykdError
from proxykd.runs.storage import RunDirectory, finished_facts, location, unfinished
from proxykd.text.corpus import Row
from proxykd.text.seeds import sample_seed
from proxykd.training.sampling import Room

ENGINE_RECOVERY_S = 1200.0
"""How long a request waits for an engine to be replaced: large models take minutes to load."""
RETRY_S = 2.0
ByReference = Mapping[Path, Sequence[RowRange]]
"""Shards to be written, each with where the rows are that it is made of."""
T = TypeVar("T")
TWO_AT_ONCE = ray.data.TaskPoolStrategy(size=2)


@dataclass(frozen=True)
class EngineCall:
    """How a Ray Data task reaches the engine: the application, the adapter to answer, the deadline of a call."""

    app: str
    adapter: str
    deadline_s: float

    def __call__(self, method: str, **request: Any) -> Any:
        """The engine's answer. Where the engine or its replica dies, the same is asked of the replacement.

        Raises:
            EngineError: no replacement answered within ENGINE_RECOVERY_S.
            TimeoutError: the deadline passed.
        """
        until = time.monotonic() + ENGINE_RECOVERY_S
        while True:
            handle = serve.get_app_handle(self.app)
            response = getattr(handle, method).remote(self.adapter, deadline_s=self.deadline_s, **request)
            try:
                return response.result(timeout_s=self.deadline_s + 30.0)
            except (EngineError, RayActorError) as error:
                if time.monotonic() > until:
                    raise EngineError(
                        f"the engine died and none answered for {ENGINE_RECOVERY_S:.0f} s; its log is in Ray's session"
                    ) from error
                time.sleep(RETRY_S)


@dataclass(frozen=True)
class Sampler:
    """Draws one completion for each row's prompt, with a seed that row and round decide; 0 is no round's number."""

    call: EngineCall
    round_number: int
    seed: int
    room: Room

    def __call__(self, rows: list[Row]) -> Iterator[tuple[Row, int, Generation]]:
        """Each row with its seed and completion, which has its stop token unless it ended by length."""
        seeds = [sample_seed(self.seed, self.round_number, row["id"]) for row in rows]
        prompts = [list(row["prompt_ids"]) for row in rows]
        drawn = self.call("generate", prompts=prompts, max_tokens=[self.room.of(p) for p in prompts], seeds=seeds)
        return zip(rows, seeds, drawn, strict=True)


def sample_pairs(
    shards: ByReference, draw: Sampler, config: AlignmentConfig, reporter: Reporter, run: RunDirectory
) -> None:
    """Draws one rejected completion for every row of every unfinished shard, and writes the pairs."""

    def sample(path: Path, rows: list[Row]) -> None:
        pairs = []
        for row, seed, drawn in draw(rows):
            facts = {"rejected_stopped": drawn.stopped, "adapter": drawn.adapter, "seed": seed}
            pairs.append({**row, "rejected_ids": drawn.token_ids, **facts})
        write_pairs(path, pairs, config)

    _for_each_shard(shards, sample, "pairs", reporter, run)


def complete_prompts(shards: ByReference, draw: Sampler, reporter: Reporter, run: RunDirectory) -> None:
    """Writes every unfinished shard with another model's completions in place of the corpus' own."""

    def complete(path: Path, rows: list[Row]) -> None:
        others = {"completion": "", "teacher_top": None}
        write_rows_shard(path, [{**row, **others, "completion_ids": drawn.token_ids} for row, _, drawn in draw(rows)])

    _for_each_shard(shards, complete, "completions", reporter, run)


def score_with_engine(
    shards: ByReference, call: EngineCall, source: LabelSource, reporter: Reporter, run: RunDirectory
) -> None:
    """Writes the soft labels of every unfinished shard from the engine's prompt log-probs."""

    def score(path: Path, rows: list[Row]) -> None:
        prompts = [list(row["prompt_ids"]) for row in rows]
        completions = [list(row["completion_ids"]) for row in rows]
        results = call("score", prompts=prompts, completions=completions, top_k=source.top_k)
        write_soft_labels(path, rows, results, source)

    _for_each_shard(shards, score, "records", reporter, run)


def stream_pairs(shards: list[RowRange], pool: str | None = None) -> ray.data.Dataset:
    """The round's pairs, in order, each row with its place `index`; read by the nodes of `pool`, or any.

    Raises:
        IntegrityError: a shard has gone.
    """
    require_there(shards)
    return _stream([(shard, len(shard)) for shard in shards], _pair_rows, pool)


def stream_corpus(ranges: list[RowRange], pool: str | None = None) -> ray.data.Dataset:
    """Rows of the corpus, in order.

    Raises:
        IntegrityError: a shard has gone.
    """
    require_there(ranges)
    return _stream([(one, len(one)) for one in ranges], _corpus_rows, pool)


def stream_distillation(
    groups: list[LabelledGroup], source: LabelSource, trust: Callable[[float, int], float], pool: str | None = None
) -> ray.data.Dataset:
    """Completions joined with their soft labels and trust weights, in order. A label that does not belong is
    refused.

    Raises:
        IntegrityError: a shard has gone.
    """

    def read(group: LabelledGroup) -> list[Row]:
        return labelled_rows(group, source, trust)

    counted = [(group, sum(finished_facts(shard.completions)["records"] for shard in group)) for group in groups]
    return _stream(counted, read, pool)


def _pair_rows(shard: RowRange) -> list[Row]:
    return read_pairs(location(shard.path))


def _corpus_rows(one: RowRange) -> list[Row]:
    return read_ranges([one])


def _stream(counted: list[tuple[T, int]], read: Callable[[T], list[Row]], pool: str | None) -> ray.data.Dataset:
    """The rows that `read` finds where the parts say, as many as counted; in order and numbered, so that a consumer can
    see that none is missing or out of place."""
    if not counted:
        raise ProxykdError("no shard to stream: the stage before wrote none")
    parts, counts = zip(*counted, strict=True)
    items = [
        {"part": number, "first": first}
        for number, (first, count) in enumerate(zip(accumulate(counts, initial=0), counts, strict=False))
        if count
    ]

    def rows(item: dict[str, Any]) -> list[Row]:
        return [{"index": item["first"] + i, **row} for i, row in enumerate(read(parts[item["part"]]))]

    # Two readers keep ahead of any trainer; each more is a process that takes seconds to start.
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    return dataset.flat_map(rows, compute=TWO_AT_ONCE, **in_pool(pool))


def _for_each_shard(
    shards: ByReference,
    write: Callable[[Path, list[Row]], None],
    unit: str,
    reporter: Reporter,
    run: RunDirectory,
) -> None:
    """Writes every shard that is not finished, from rows that its task reads where they are, and reports them as
    `unit`. A task whose worker died is done again by Ray.

    Raises:
        IntegrityError: a shard that rows are in has gone.
        RunStoppedError: somebody asked the run to stop; the shards in hand were finished.
    """
    total = sum(len(one) for ranges in shards.values() for one in ranges)
    given = list(shards.items())

    def once(item: dict[str, Any]) -> dict[str, Any]:
        path, ranges = given[item["shard"]]
        if unfinished(path) and not run.stop_request.exists():
            rows = read_ranges(ranges)
            write(path, rows)
            reporter().add(len(rows), total, unit)
        return item

    missing = [{"shard": number} for number, (path, _) in enumerate(given) if unfinished(path)]
    require_there(one for item in missing for one in given[item["shard"]][1])
    if missing:
        dataset = ray.data.from_items(missing, override_num_blocks=len(missing))
        # Two calls at once: the engine never waits for the next shard while one is written.
        dataset.map(once, compute=TWO_AT_ONCE, **in_pool(run.config().resources.pools.data)).materialize()
    run.go_on()
