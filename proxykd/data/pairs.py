"""Preference pairs on disk: the teacher's completion against the proxy's own. rounds/<i>/pairs/shard-*.parquet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from proxykd.config import AlignmentConfig
from proxykd.data.corpus_blocks import IDS, TEACHER_TOP
from proxykd.errors import CorpusError
from proxykd.runs.storage import finished_facts, read_table, shard_facts, verify_shard
from proxykd.runs.table_shards import write_rows_as_shard
from proxykd.text.corpus import Row

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


def write_pairs(path: Path, rows: list[Row], config: AlignmentConfig) -> Counter[str]:
    """Writes the rows whose sides differ, by as much as `max_similarity` asks, and are not empty; those whose sample
    ended by length only where `truncated_samples` keeps them. Returns what was dropped and why."""
    dropped: Counter[str] = Counter()
    kept = []
    for row in rows:
        reason = _reason_to_drop(row, config)
        if reason:
            dropped[reason] += 1
        else:
            kept.append(row)
    facts = {
        "adapter": rows[0]["adapter"],
        "dropped": dict(dropped),
        "samples": len(rows),
        "truncated": sum(not row["rejected_stopped"] for row in rows),
        "tokens": sum(len(row["rejected_ids"]) for row in rows),
    }
    write_rows_as_shard(path, kept, SCHEMA, facts)
    return dropped


def drawn_from(path: Path) -> str:
    """The versioned name of the adapter that a finished shard's samples are of."""
    return str(finished_facts(path).get("adapter"))


def _reason_to_drop(row: Row, config: AlignmentConfig) -> str | None:
    if not row["rejected_ids"]:
        return "empty"
    if row["rejected_ids"] == row["completion_ids"]:
        return "equal"
    if config.truncated_samples == "drop" and not row["rejected_stopped"]:
        return "truncated"
    alike = config.max_similarity < 1 and similarity(row["completion_ids"], row["rejected_ids"]) > config.max_similarity
    return "similar" if alike else None


def similarity(one: Sequence[int], other: Sequence[int]) -> float:
    """Returns what share of their tokens two sequences, not both empty, have in common, counted as often as they occur:
    the F measure of ROUGE-1 (Lin, 2004), on token ids."""
    common = (Counter(one) & Counter(other)).total()
    return 2 * common / (len(one) + len(other))


def count_pairs(shards: Sequence[Path]) -> dict[str, Any]:
    """Returns counts over a round's finished shards: `pairs`, what was `dropped` and why, all `samples` and how many of
    them were `truncated`, kept or not.

    Raises:
        CorpusError: no pair is left.
    """
    made = [shard_facts(path) or {} for path in shards]
    dropped = sum((Counter(facts["dropped"]) for facts in made), Counter[str]())
    counts = {key: sum(facts[key] for facts in made) for key in ("samples", "truncated")}
    pairs = sum(facts["records"] for facts in made)
    if not pairs:
        raise CorpusError(
            f"every pair was dropped ({dict(dropped)}): equal samples repeat the teacher, similar ones nearly do "
            f"(raise alignment.max_similarity), truncated ones ran out of their room (raise corpus.max_length or "
            f"alignment.max_new_tokens, or set alignment.truncated_samples=keep)"
        )
    return {"pairs": pairs, "dropped": dict(dropped), **counts}


def read_pairs(path: Path) -> list[Row]:
    """A shard's rows after its checksum was verified; `length` is the cost of both sides behind one prompt."""
    verify_shard(path)
    rows: list[Row] = read_table(path).to_pylist()
    for row in rows:
        row["length"] = sum(len(row[key]) for key in ("prompt_ids", "completion_ids", "rejected_ids"))
    return rows
