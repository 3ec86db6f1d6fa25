"""Preference pairs on disk: the teacher's completion against the proxy's own. rounds/<i>/pairs/shard-*.parquet."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from proxykd.corpus import Row
from proxykd.corpus_store import IDS, TEACHER_TOP
from proxykd.storage import read_table, verify_shard, write_shard

SIDES = {"chosen": "completion_ids", "rejected": "rejected_ids"}
"""Of a pair, and the columns of their tokens."""
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt_ids", IDS),
        ("completion_ids", IDS),
        ("teacher_top", TEACHER_TOP),
        ("rejected_ids", IDS),
        ("rejected_stopped", pa.bool_()),
        ("adapter", pa.string()),
        ("seed", pa.int64()),
    ]
)


def write_pairs(path: Path, rows: list[Row]) -> Counter[str]:
    """Writes the rows whose sides differ and are not empty; returns what was dropped and why."""
    dropped: Counter[str] = Counter()
    kept = []
    for row in rows:
        reason = (
            "empty" if not row["rejected_ids"] else "equal" if row["rejected_ids"] == row["completion_ids"] else None
        )
        if reason:
            dropped[reason] += 1
        else:
            kept.append({name: row.get(name) for name in SCHEMA.names})
    table = pa.Table.from_pylist(kept, schema=SCHEMA)
    facts = {
        "records": len(kept),
        "dropped": dict(dropped),
        "tokens": sum(len(row["rejected_ids"]) for row in rows),
    }
    write_shard(path, lambda target: pq.write_table(table, target, compression="zstd"), facts)
    return dropped


def read_pairs(path: Path) -> list[Row]:
    """A shard's rows after its checksum was verified; `length` is the cost of both sides in one padded batch."""
    verify_shard(path)
    rows: list[Row] = read_table(path).to_pylist()
    for row in rows:
        longest = max(len(row["completion_ids"]), len(row["rejected_ids"]))
        row["length"] = 2 * (len(row["prompt_ids"]) + longest)
    return rows
