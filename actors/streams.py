"""Ray Data: sampling and scoring onto the proxy's deployment, shard by shard, and what the Train workers stream.

A shard is one file with its marker. Only missing shards are asked for, so that running again is resuming.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import serve

from actors.engine import CompletionLogps
from actors.progress import Reporter
from proxykd.chat import ids_hash
from proxykd.corpus_store import read_shard_rows
from proxykd.errors import ModelError, ProxykdError
from proxykd.losses import trust_weights
from proxykd.pairs import read_pairs, write_pairs
from proxykd.rounds import sample_seed
from proxykd.soft_labels import LabelSource, SoftLabels, require, require_match, unpack, write_shard_file
from proxykd.storage import shard_facts, verify_shard, write_shard
from proxykd.training import Row


@dataclass(frozen=True)
class EngineCall:
    """How a Ray Data task reaches the engine: the application, the adapter to answer, the deadline of a call."""

    app: str
    adapter: str
    deadline_s: float

    def __call__(self, method: str, **request: Any) -> Any:
        handle = serve.get_app_handle(self.app)
        response = getattr(handle, method).remote(self.adapter, deadline_s=self.deadline_s, **request)
        return response.result(timeout_s=self.deadline_s + 30.0)


def sample_pairs(
    shards: dict[Path, list[Row]],
    call: EngineCall,
    *,
    round_number: int,
    seed: int,
    max_tokens: int,
    max_length: int,
    stop_token_id: int,
    reporter: Reporter,
) -> None:
    """Draws one rejected completion for every row of every unfinished shard, and writes the pairs."""
    total = sum(map(len, shards.values()))

    def sample(item: dict[str, Any]) -> dict[str, Any]:
        rows = item["rows"]
        seeds = [sample_seed(seed, round_number, row["id"]) for row in rows]
        longest = max(len(row["prompt_ids"]) for row in rows)
        generations = call(
            "generate",
            prompts=[list(row["prompt_ids"]) for row in rows],
            max_tokens=max(1, min(max_tokens, max_length - longest)),
            seeds=seeds,
        )
        pairs = []
        for row, generation, row_seed in zip(rows, generations, seeds, strict=True):
            rejected = list(generation.token_ids)
            if generation.stopped and rejected[-1:] != [stop_token_id]:
                rejected.append(stop_token_id)
            facts = {"rejected_stopped": generation.stopped, "adapter": generation.adapter, "seed": row_seed}
            pairs.append({**row, "rejected_ids": rejected, **facts})
        write_pairs(Path(item["path"]), pairs)
        reporter().add(len(rows), total, "pairs")
        return {"path": item["path"]}

    _for_each_shard(shards, sample)


def score_with_engine(shards: dict[Path, list[Row]], call: EngineCall, source: LabelSource, reporter: Reporter) -> None:
    """Writes the soft labels of every unfinished shard from the engine's prompt log-probs."""
    total = sum(map(len, shards.values()))

    def score(item: dict[str, Any]) -> dict[str, Any]:
        rows = item["rows"]
        prompts = [list(row["prompt_ids"]) for row in rows]
        completions = [list(row["completion_ids"]) for row in rows]
        results = call("score", prompts=prompts, completions=completions, top_k=source.top_k)
        write_soft_labels(Path(item["path"]), rows, results, source)
        reporter().add(len(rows), total, "records")
        return {"path": item["path"]}

    _for_each_shard(shards, score)


def write_soft_labels(path: Path, rows: list[Row], results: list[CompletionLogps], source: LabelSource) -> None:
    labels = [
        SoftLabels(
            row["id"],
            ids_hash(list(row["completion_ids"])),
            scored.top_ids_TK,
            scored.top_logps_TK,
            scored.tail_logmass_T,
            scored.token_logps_T,
            float(scored.token_logps_T.sum()),
        )
        for row, scored in zip(rows, results, strict=True)
    ]
    beyond = max(int(label.top_ids_TK.max(initial=0)) for label in labels)
    if beyond >= source.vocabulary:
        raise ModelError(
            f"{source.adapter} gives mass to token id {beyond}, beyond the tokenizer's {source.vocabulary} tokens; set "
            f"score.source=trainer, which cuts a padded vocabulary"
        )
    tokens = sum(len(label.token_logps_T) for label in labels)
    write_shard(path, lambda target: write_shard_file(target, labels, source), {"records": len(rows), "tokens": tokens})


def stream_pairs(shards: list[Path]) -> ray.data.Dataset:
    """The round's pairs, in order, each row with its place `index`."""
    return _stream(shards, _pair_rows)


def stream_corpus(shards: list[Path]) -> ray.data.Dataset:
    """A corpus slice, in order."""
    return _stream(shards, _corpus_rows)


def stream_distillation(
    shards: list[Path], labels: Path, source: LabelSource, trust: Callable[[float, int], float]
) -> ray.data.Dataset:
    """D_s joined with its soft labels and trust weights, in order. A label that does not belong is refused."""
    return _stream(shards, partial(_distillation_rows, labels=labels, source=source, trust=trust))


def trust_of(kind: str, mu: float, gamma: float) -> Callable[[float, int], float]:
    """The trust weight of a record from its log p(y given x) and tokens, by `distillation.trust`."""
    import torch

    def weight(sequence_logp: float, tokens: int) -> float:
        if kind == "none":
            return 1.0
        if kind == "constant":
            return 0.5
        score = sequence_logp / max(tokens, 1) if kind == "token_mean" else sequence_logp
        return float(trust_weights(torch.tensor([score]), mu, gamma))

    return weight


def unpack_labels(row: Row, source: LabelSource) -> Row:
    """A streamed distillation row with its packed labels as arrays, checked against the row's own tokens."""
    label = unpack(row, source)
    require_match(label, row["id"], list(row["completion_ids"]))
    return {**row, "soft_labels": label}


def _pair_rows(path: Path) -> Iterable[Row]:
    return read_pairs(path)


def _corpus_rows(path: Path) -> Iterable[Row]:
    return read_shard_rows(path)


def _distillation_rows(
    path: Path, labels: Path, source: LabelSource, trust: Callable[[float, int], float]
) -> Iterable[Row]:
    import pyarrow.parquet as pq

    label_path = labels / path.name
    verify_shard(label_path)
    require(label_path, source)
    for row, label in zip(read_shard_rows(path), pq.read_table(label_path).to_pylist(), strict=True):
        yield {**row, **label, "trust": trust(label["sequence_logp"], label["tokens"])}


def _stream(shards: list[Path], read: Callable[[Path], Iterable[Row]]) -> ray.data.Dataset:
    """Rows of the shards in order, numbered, so that a consumer can see that none is missing or out of place."""
    if not shards:
        raise ProxykdError("no shard to stream: the stage before wrote none")
    counts = [(verify_shard(path) or {})["records"] for path in shards]
    items = [{"path": str(path), "first": sum(counts[:i])} for i, path in enumerate(shards) if counts[i]]

    def rows(item: dict[str, Any]) -> list[Row]:
        return [{"index": item["first"] + i, **row} for i, row in enumerate(read(Path(item["path"])))]

    return ray.data.from_items(items, override_num_blocks=len(items)).flat_map(rows)


def _for_each_shard(shards: dict[Path, list[Row]], work: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    missing = [{"path": str(path), "rows": rows} for path, rows in shards.items() if shard_facts(path) is None]
    if missing:
        dataset = ray.data.from_items(missing, override_num_blocks=len(missing))
        # Two calls at once: the engine never waits for the next shard while one is written.
        dataset.map(work, concurrency=2).materialize()
