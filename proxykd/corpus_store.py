"""The run's corpus on disk: split, ordered and tokenised once. corpus/<slice>/shard-00000.parquet with markers."""

from __future__ import annotations

import hashlib
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from proxykd.chat import ChatFormat, TokenisedRecord, tokenise_all, tokenizer_hash
from proxykd.config import RunConfig
from proxykd.corpus import Reading, Row, slice_of
from proxykd.errors import CorpusError
from proxykd.storage import (
    RunDirectory,
    read_json,
    read_table,
    unfinished,
    verify_shard,
    write_json,
    write_shard,
)

SLICES = ("validation", "test", "warmup", "alignment", "distillation")
IDS = pa.list_(pa.int32())
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt_ids", IDS),
        ("completion_ids", IDS),
        ("prompt", pa.string()),
        ("completion", pa.string()),
    ]
)


def write_corpus(run: RunDirectory, config: RunConfig, reading: Reading, chat: ChatFormat) -> dict[str, Any]:
    """Splits, tokenises and writes every slice; returns and stores the counts.

    Raises:
        CorpusError: a slice would be empty.
    """
    slices = [slice_of(r.messages, config.corpus.split) for r in reading.records]
    kept, notes = tokenise_all(reading.records, slices, chat, config.corpus.max_length, config.corpus.overlong)
    by_slice: dict[str, list[TokenisedRecord]] = {name: [] for name in SLICES}
    for record in kept:
        by_slice[record.slice].append(record)
    counts = {name: len(records) for name, records in by_slice.items()}
    needed = [n for n in SLICES if not (n == "alignment" and config.alignment.rounds == 0)]
    empty = [name for name in needed if not counts[name]]
    if empty:
        raise CorpusError(
            f"{len(kept)} usable records leave the slice(s) {', '.join(empty)} empty; add records or enlarge the "
            f"shares in corpus.split"
        )
    texts = {record.id: record for record in reading.records}
    for name, records in by_slice.items():
        records.sort(key=lambda r: hashlib.sha256(f"{config.seed}:{r.id}".encode()).digest())
        _write_slice(run.corpus / name, records, texts, config.corpus.shard_records)
    truncated = notes.pop("truncated", 0)
    dropped = Counter(reading.dropped) + notes
    manifest = {
        "records": len(kept),
        **counts,
        "truncated": truncated,
        "dropped": {reason: count for reason, count in sorted(dropped.items()) if count},
        "bad_lines": reading.bad_lines,
        "tokens": sum(len(r.completion_ids) for r in kept),
        "tokenizer": tokenizer_hash(chat.tokenizer),
    }
    write_json(run.corpus / "manifest.json", manifest)
    return manifest


def _write_slice(directory: Path, records: list[TokenisedRecord], texts: dict[str, Any], shard_records: int) -> None:
    for number, start in enumerate(range(0, len(records), shard_records)):
        part = records[start : start + shard_records]
        columns = {
            "id": [r.id for r in part],
            "prompt_ids": [r.prompt_ids for r in part],
            "completion_ids": [r.completion_ids for r in part],
            "prompt": [texts[r.id].messages[-1]["content"] for r in part],
            "completion": [texts[r.id].completion for r in part],
        }
        table = pa.table(columns, schema=SCHEMA)
        write_shard(directory / f"shard-{number:05d}.parquet", partial(_write_table, table), {"records": len(part)})


def write_rows(directory: Path, rows: list[Row], shard_records: int) -> list[Path]:
    """Rows of the corpus as shards of their own; finished ones stand."""
    paths = []
    for number, start in enumerate(range(0, len(rows), shard_records)):
        path = directory / f"shard-{number:05d}.parquet"
        write_rows_shard(path, rows[start : start + shard_records])
        paths.append(path)
    return paths


def write_rows_shard(path: Path, rows: list[Row]) -> None:
    if unfinished(path):
        table = pa.Table.from_pylist([{name: row[name] for name in SCHEMA.names} for row in rows], schema=SCHEMA)
        write_shard(path, partial(_write_table, table), {"records": len(rows)})


def _write_table(table: pa.Table, path: Path) -> None:
    pq.write_table(table, path, compression="zstd")


def manifest(run: RunDirectory) -> dict[str, Any]:
    value: dict[str, Any] = read_json(run.corpus / "manifest.json")
    return value


def slice_shards(run: RunDirectory, name: str) -> list[Path]:
    return sorted((run.corpus / name).glob("shard-*.parquet"))


def read_shard_rows(path: Path) -> list[Row]:
    """A corpus shard's rows after its checksum was verified, each with its `length` in tokens."""
    verify_shard(path)
    rows: list[Row] = read_table(path).to_pylist()
    for row in rows:
        row["length"] = len(row["prompt_ids"]) + len(row["completion_ids"])
    return rows


def read_slice(run: RunDirectory, name: str) -> list[Row]:
    """All rows of a slice, in order. For the held-out slices and record counts; training streams instead."""
    return [row for path in slice_shards(run, name) for row in read_shard_rows(path)]
