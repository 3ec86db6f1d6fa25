"""Ray Data: what the Train workers stream, read from shards by whoever has the time."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any, TypeVar

import ray

from actors.cluster.placement import in_pool
from proxykd.data.label_shards import LabelledGroup, labelled_rows
from proxykd.data.pairs import read_pairs
from proxykd.data.row_ranges import RowRange, read_ranges, require_there
from proxykd.data.soft_labels import LabelSource
from proxykd.errors import ProxykdError
from proxykd.runs.storage import finished_facts, location
from proxykd.text.corpus import Row

T = TypeVar("T")
READERS = ray.data.TaskPoolStrategy(size=2)
"""They keep ahead of any trainer; each more is a process that takes seconds to start."""


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

    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    dataset.context.raise_original_map_exception = True  # an IntegrityError arrives as what it is
    return dataset.flat_map(rows, compute=READERS, **in_pool(pool))
