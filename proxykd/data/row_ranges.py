"""Rows by reference: the path of a shard and which of its rows. Whoever needs the rows reads them where it is."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import pyarrow as pa

from proxykd.runs.storage import finished_facts, location, read_table, verify_shard
from proxykd.text.corpus import Row


@dataclass(frozen=True)
class RowRange:
    """Consecutive rows of a shard of the corpus, from `start` to before `stop`."""

    path: str
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


def whole(paths: Iterable[Path]) -> list[RowRange]:
    """All rows of shards, by what their markers say.

    Raises:
        IntegrityError: one of them is not there.
    """
    return [RowRange(str(path), 0, finished_facts(path)["records"]) for path in paths]


def require_there(ranges: Iterable[RowRange]) -> None:
    """Looks for every shard, before anybody begins to read them.

    Raises:
        IntegrityError: one of them has gone.
    """
    for path in dict.fromkeys(paths_of(ranges)):
        finished_facts(path)


def paths_of(ranges: Iterable[RowRange]) -> list[Path]:
    return [location(one.path) for one in ranges]


def select(ranges: Sequence[RowRange], indices: Iterable[int]) -> list[RowRange]:
    """Returns where these rows of all of the ranges' rows are, in the order of the indices, as few ranges as can be."""
    ends = list(accumulate(map(len, ranges)))
    found: list[RowRange] = []
    for index in indices:
        number = bisect_right(ends, index)
        one = ranges[number]
        row = one.stop - (ends[number] - index)
        if found and found[-1].path == one.path and found[-1].stop == row:
            found[-1] = replace(found[-1], stop=row + 1)
        else:
            found.append(RowRange(one.path, row, row + 1))
    return found


def parts(ranges: Iterable[RowRange], size: int) -> Iterator[list[RowRange]]:
    """The rows of all ranges, in order, `size` at a time."""
    part: list[RowRange] = []
    room = size
    for one in ranges:
        start = one.start
        while start < one.stop:
            stop = min(one.stop, start + room)
            part.append(RowRange(one.path, start, stop))
            room -= stop - start
            start = stop
            if not room:
                yield part
                part, room = [], size
    if part:
        yield part


def read_ranges(ranges: Iterable[RowRange]) -> list[Row]:
    """The rows of all ranges, in order, each with its `length` in tokens. A shard is verified and read once, however
    many of the ranges are of it."""
    tables: dict[str, pa.Table] = {}
    rows: list[Row] = []
    for one in ranges:
        if one.path not in tables:
            tables[one.path] = _verified(location(one.path))
        rows += _rows(tables[one.path].slice(one.start, len(one)))
    return rows


def read_shard_rows(path: Path) -> list[Row]:
    """A corpus shard's rows, each with its `length` in tokens, after its checksum was verified."""
    return _rows(_verified(path))


def _verified(path: Path) -> pa.Table:
    verify_shard(path)
    return read_table(path)


def _rows(table: pa.Table) -> list[Row]:
    rows: list[Row] = table.to_pylist()
    for row in rows:
        row["length"] = len(row["prompt_ids"]) + len(row["completion_ids"])
    return rows


def completion_tokens(ranges: Iterable[RowRange]) -> int:
    """Returns how many tokens the completions of these rows, of the corpus or of pairs, have. A shard
    is read once; four bytes a row are held."""
    import pyarrow.compute as pc

    lengths: dict[str, pa.Array] = {}
    total = 0
    for one in ranges:
        if one.path not in lengths:
            [ids] = read_table(location(one.path), columns=["completion_ids"]).columns
            lengths[one.path] = pc.list_value_length(ids)
        total += pc.sum(lengths[one.path].slice(one.start, len(one))).as_py() or 0
    return total
