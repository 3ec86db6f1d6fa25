"""Ray Data: sampling and scoring onto the proxy's deployment, shard by shard, and what the Train workers stream.

A shard is one file with its marker. Only missing shards are asked for, so that running again is resuming.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayActorError

from actors.cluster.placement import in_pool
from actors.engine.proxy_engine import Generation
from actors.telemetry.progress import Reporter
from proxykd.config import AlignmentConfig
from proxykd.data.corpus_store import read_shard_rows, write_rows_shard
from proxykd.data.label_shards import LabelledGroup, labelled_rows, write_soft_labels
from proxykd.data.pairs import read_pairs, write_pairs
from proxykd.data.soft_labels import LabelSource
from proxykd.errors import EngineError, ProxykdError
from proxykd.runs.storage import RunDirectory, location, unfinished, verify_shard
from proxykd.text.corpus import Row
from proxykd.text.seeds import sample_seed
from proxykd.training.sampling import Room

ENGINE_RECOVERY_S = 1200.0
"""How long a request waits for an engine to be replaced: large models take minutes to load."""
RETRY_S = 2.0
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
    shards: dict[Path, list[Row]], draw: Sampler, config: AlignmentConfig, reporter: Reporter, run: RunDirectory
) -> None:
    """Draws one rejected completion for every row of every unfinished shard, and writes the pairs."""

    def sample(path: Path, rows: list[Row]) -> None:
        pairs = []
        for row, seed, drawn in draw(rows):
            facts = {"rejected_stopped": drawn.stopped, "adapter": drawn.adapter, "seed": seed}
            pairs.append({**row, "rejected_ids": drawn.token_ids, **facts})
        write_pairs(path, pairs, config)

    _for_each_shard(shards, sample, "pairs", reporter, run)


def complete_prompts(shards: dict[Path, list[Row]], draw: Sampler, reporter: Reporter, run: RunDirectory) -> None:
    """Writes every unfinished shard with another model's completions in place of the corpus' own."""

    def complete(path: Path, rows: list[Row]) -> None:
        others = {"completion": "", "teacher_top": None}
        write_rows_shard(path, [{**row, **others, "completion_ids": drawn.token_ids} for row, _, drawn in draw(rows)])

    _for_each_shard(shards, complete, "completions", reporter, run)


def score_with_engine(
    shards: dict[Path, list[Row]], call: EngineCall, source: LabelSource, reporter: Reporter, run: RunDirectory
) -> None:
    """Writes the soft labels of every unfinished shard from the engine's prompt log-probs."""

    def score(path: Path, rows: list[Row]) -> None:
        prompts = [list(row["prompt_ids"]) for row in rows]
        completions = [list(row["completion_ids"]) for row in rows]
        results = call("score", prompts=prompts, completions=completions, top_k=source.top_k)
        write_soft_labels(path, rows, results, source)

    _for_each_shard(shards, score, "records", reporter, run)


def stream_pairs(shards: list[Path], pool: str | None = None) -> ray.data.Dataset:
    """The round's pairs, in order, each row with its place `index`; read by the nodes of `pool`, or any."""
    return _stream([(path,) for path in shards], _pair_rows, pool)


def stream_corpus(shards: list[Path], pool: str | None = None) -> ray.data.Dataset:
    """A corpus slice, in order."""
    return _stream([(path,) for path in shards], _corpus_rows, pool)


def stream_distillation(
    groups: list[LabelledGroup], source: LabelSource, trust: Callable[[float, int], float], pool: str | None = None
) -> ray.data.Dataset:
    """Completions joined with their soft labels and trust weights, in order. A label that does not belong is
    refused."""
    by_path = {str(group[0].completions): group for group in groups}

    def read(path: Path) -> Iterable[Row]:
        return labelled_rows(by_path[str(path)], source, trust)

    return _stream([tuple(shard.completions for shard in group) for group in groups], read, pool)


def _pair_rows(path: Path) -> Iterable[Row]:
    return read_pairs(path)


def _corpus_rows(path: Path) -> Iterable[Row]:
    return read_shard_rows(path)


def _stream(
    groups: list[tuple[Path, ...]], read: Callable[[Path], Iterable[Row]], pool: str | None
) -> ray.data.Dataset:
    """Rows in order, numbered, so that a consumer can see that none is missing or out of place. A group of shards is
    read as one, by the path of its first."""
    if not groups:
        raise ProxykdError("no shard to stream: the stage before wrote none")
    counts = [sum(verify_shard(path)["records"] for path in group) for group in groups]
    placed = zip(groups, accumulate(counts, initial=0), counts, strict=False)
    items = [{"path": str(group[0]), "first": first} for group, first, count in placed if count]

    def rows(item: dict[str, Any]) -> list[Row]:
        return [{"index": item["first"] + i, **row} for i, row in enumerate(read(location(item["path"])))]

    # Two readers keep ahead of any trainer; each more is a process that takes seconds to start.
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    return dataset.flat_map(rows, compute=TWO_AT_ONCE, **in_pool(pool))


def _for_each_shard(
    shards: dict[Path, list[Row]],
    write: Callable[[Path, list[Row]], None],
    unit: str,
    reporter: Reporter,
    run: RunDirectory,
) -> None:
    """Writes every shard that is not finished, and reports its rows as `unit`. A task whose worker died is done again
    by Ray.

    Raises:
        RunStoppedError: somebody asked the run to stop; the shards in hand were finished.
    """
    total = sum(map(len, shards.values()))

    def once(item: dict[str, Any]) -> dict[str, Any]:
        path, rows = location(item["path"]), item["rows"]
        if unfinished(path) and not run.stop_request.exists():
            write(path, rows)
            reporter().add(len(rows), total, unit)
        return {"path": item["path"]}

    missing = [{"path": str(path), "rows": rows} for path, rows in shards.items() if unfinished(path)]
    if missing:
        dataset = ray.data.from_items(missing, override_num_blocks=len(missing))
        # Two calls at once: the engine never waits for the next shard while one is written.
        dataset.map(once, compute=TWO_AT_ONCE, **in_pool(run.config().resources.pools.data)).materialize()
    run.go_on()
