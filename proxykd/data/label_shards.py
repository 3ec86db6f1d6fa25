"""From log-probs of completions, whoever scored them, to shards of soft labels, and back to rows that train."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from proxykd.data.row_ranges import read_shard_rows
from proxykd.data.soft_labels import LabelSource, SoftLabels, require, require_match, unpack, write_label_shard
from proxykd.errors import IntegrityError
from proxykd.runs.storage import read_table, verify_shard
from proxykd.text.corpus import Row
from proxykd.text.tokenising import ids_hash


@dataclass(frozen=True)
class CompletionLogps:
    """T completion tokens: their log-probs, the K most likely with theirs (sorted), and the log-mass of the rest; or K
    draws with their shares (proxykd/losses/drawn.py)."""

    token_logps_T: np.ndarray
    top_ids_TK: np.ndarray
    top_logps_TK: np.ndarray
    tail_logmass_T: np.ndarray
    adapter: str
    ranks_T: np.ndarray | None = None
    """Each token's place in the whole vocabulary, from 1; known where the engine scored."""
    asked_logps: list[list[float]] | None = None
    """By position, those of the ids that were asked for there, in their order."""


def write_soft_labels(path: Path, rows: list[Row], results: list[CompletionLogps], source: LabelSource) -> None:
    """Writes the soft labels of a shard's rows, as scored."""
    labels = [
        SoftLabels(
            row["id"],
            ids_hash(list(row["completion_ids"])),
            scored.top_ids_TK,
            scored.top_logps_TK,
            scored.tail_logmass_T,
            scored.token_logps_T,
            float(scored.token_logps_T.sum(dtype="float64")),
        )
        for row, scored in zip(rows, results, strict=True)
    ]
    write_label_shard(path, labels, source)


@dataclass(frozen=True)
class LabelledShard:
    """A shard of completions, that of its labels, and whether the completions are the proxy's own: then no teacher's
    text, which the student learns by the KL alone, with a weight of 1."""

    completions: Path
    labels: Path
    answers: bool = False


LabelledGroup = tuple[LabelledShard, ...]
"""Shards whose rows are streamed as one, spread evenly among each other."""


def labelled_rows(group: LabelledGroup, source: LabelSource, trust: Callable[[float, int], float]) -> list[Row]:
    """The rows with their labels, still packed, trust weights, and whether they are `answers`.

    Raises:
        IntegrityError: the labels are not of this source.
    """
    parts = [list(_labelled(shard, source, trust)) for shard in group]
    placed = [((i + 0.5) / len(part), row) for part in parts for i, row in enumerate(part)]
    return [row for _, row in sorted(placed, key=lambda one: one[0])]


def _labelled(shard: LabelledShard, source: LabelSource, trust: Callable[[float, int], float]) -> Iterator[Row]:
    verify_shard(shard.labels)
    require(shard.labels, source)
    labels = {label["record_id"]: label for label in read_table(shard.labels).to_pylist()}
    for row in read_shard_rows(shard.completions):
        if (label := labels.get(row["id"])) is None:
            raise IntegrityError(f"{shard.labels} has no labels of record {row['id']!r}; delete it and resume the run")
        weight = 1.0 if shard.answers else trust(label["sequence_logp"], label["tokens"])
        yield {**row, **label, "trust": weight, "answer": shard.answers}


def grouped(shards: Sequence[LabelledShard], others: Sequence[LabelledShard] = ()) -> list[LabelledGroup]:
    """Each of the shards with its even share of the others, all in their order."""
    groups = [[shard] for shard in shards]
    for i, other in enumerate(others):
        groups[i * len(groups) // len(others)].append(other)
    return [tuple(group) for group in groups]


def unpack_labels(row: Row, source: LabelSource) -> Row:
    """A streamed distillation row with its packed labels as arrays, checked against the proxy's tokens of its reply:
    the row's own, unless it is in a student's."""
    label = unpack(row, source)
    require_match(label, row["id"], list(row["completion_ids"] if row.get("proxy_ids") is None else row["proxy_ids"]))
    return {**row, "soft_labels": label}
