"""Shards that are Parquet tables: corpus, pairs, soft labels, validation scores, inspected pairs, collected records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from proxykd.runs.storage import write_shard


def write_table_shard(path: Path, table: pa.Table, facts: Mapping[str, Any] | None = None, **encoding: Any) -> None:
    """Writes a table as one shard, compressed, and its marker `.ok` with the number of `records` and `facts`.

    `encoding` is pyarrow's, where its own choice is a bad one.
    """
    write = partial(pq.write_table, table, compression="zstd", **encoding)
    write_shard(path, write, {"records": table.num_rows, **(facts or {})})


def write_rows_as_shard(
    path: Path, rows: Iterable[Mapping[str, Any]], schema: pa.Schema, facts: Mapping[str, Any] | None = None
) -> None:
    """Writes rows as one shard and its marker: what the schema has not is left out, null where a row lacks a column."""
    write_table_shard(path, pa.Table.from_pylist(list(rows), schema=schema), facts)
