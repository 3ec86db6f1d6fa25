"""Rows by reference are the rows that a list of them all would have there; what is missing is named."""

from __future__ import annotations

import random
from itertools import pairwise
from unittest import mock

import pytest

from proxykd.data import row_ranges
from proxykd.data.corpus_store import write_rows
from proxykd.data.row_ranges import RowRange, completion_tokens, parts, read_ranges, require_there, select, whole
from proxykd.errors import IntegrityError


@pytest.fixture
def shards(tmp_path):
    """23 rows in shards of 5; the ranges of all of them, and the rows."""
    rows = [{"id": str(i), "prompt_ids": [1] * (i + 1), "completion_ids": [2] * (i % 4 + 1)} for i in range(23)]
    ranges = whole(write_rows(tmp_path, rows, 5))
    assert [(one.start, one.stop) for one in ranges] == [(0, 5)] * 4 + [(0, 3)]
    return ranges, rows


def ids(ranges):
    return [row["id"] for row in read_ranges(ranges)]


def test_any_rows_in_any_order_are_found_in_as_few_ranges_as_can_be(shards):
    ranges, rows = shards
    chance = random.Random(0)
    for indices in ([], [22, 0], list(range(23)), [*range(17, 23), *range(4)], chance.sample(range(23), 23)):
        found = select(ranges, indices)
        assert ids(found) == [rows[i]["id"] for i in indices]
        assert completion_tokens(found) == sum(len(rows[i]["completion_ids"]) for i in indices)
        breaks = sum(b != a + 1 or b % 5 == 0 for a, b in pairwise(indices))
        assert len(found) == (breaks + 1 if indices else 0)
    again = select(select(ranges, range(3, 20)), range(2, 9))
    assert ids(again) == [str(i) for i in range(5, 12)]


@pytest.mark.parametrize("size", [1, 4, 5, 7, 23, 50])
def test_parts_are_of_one_size_but_the_last(shards, size):
    ranges, _ = shards
    given = select(ranges, [*range(9, 23), *range(9)])
    found = list(parts(given, size))
    assert [one for part in found for one in ids(part)] == ids(given)
    assert [sum(map(len, part)) for part in found] == [size] * (23 // size) + [23 % size] * (23 % size > 0)


def test_one_shard_at_a_time_is_held_while_rows_are_written(tmp_path):
    def coming():
        for i in range(23):
            assert len(list(tmp_path.glob("*.ok"))) == i // 5
            yield {"id": str(i), "prompt_ids": [1], "completion_ids": [2]}

    assert ids(whole(write_rows(tmp_path, coming(), 5))) == [str(i) for i in range(23)]


def test_rows_have_their_length(shards):
    ranges, rows = shards
    assert [row["length"] for row in read_ranges(ranges)] == [
        len(row["prompt_ids"]) + len(row["completion_ids"]) for row in rows
    ]


def test_a_shard_that_vanished_is_named(shards, tmp_path):
    ranges, _ = shards
    path = tmp_path / "shard-00002.parquet"
    path.unlink()
    assert len(ids([RowRange(str(tmp_path / "shard-00001.parquet"), 2, 4)])) == 2
    for read in (read_ranges, require_there, lambda given: whole([path])):
        with pytest.raises(IntegrityError, match=r"shard-00002\.parquet is gone, though it was finished; put it back"):
            read(ranges)
    path.with_suffix(".ok").unlink()
    with pytest.raises(IntegrityError, match=r"shard-00002\.parquet has no \.ok marker"):
        read_ranges(ranges)


def test_a_shard_is_read_and_verified_once_however_many_ranges_are_of_it(shards, monkeypatch):
    ranges, rows = shards
    scattered = select(ranges, [0, 7, 2, 9, 4, 5])
    assert len(scattered) == 6
    for name in ("read_table", "verify_shard"):
        monkeypatch.setattr(row_ranges, name, mock.Mock(wraps=getattr(row_ranges, name)))
    assert ids(scattered) == ["0", "7", "2", "9", "4", "5"]
    assert row_ranges.verify_shard.call_count == row_ranges.read_table.call_count == 2
    assert completion_tokens(scattered) == sum(len(rows[i]["completion_ids"]) for i in (0, 7, 2, 9, 4, 5))
    assert row_ranges.read_table.call_count == 4


def test_a_torn_shard_is_named_by_whoever_reads_it_without_its_checksum(shards):
    ranges, _ = shards
    path = row_ranges.location(ranges[1].path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(IntegrityError, match=r"shard-00001\.parquet is torn \(.*\); delete it and its \.ok"):
        completion_tokens(ranges)
