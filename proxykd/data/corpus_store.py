"""The run's corpus on disk: split, ordered and tokenised once. corpus/<slice>/shard-00000.parquet with markers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from proxykd.config import HELD_OUT, USES, RunConfig
from proxykd.data.slices import place, require_training_records, training_order
from proxykd.errors import CorpusError
from proxykd.runs.storage import (
    RunDirectory,
    read_json,
    read_table,
    unfinished,
    verify_shard,
    write_json,
)
from proxykd.runs.table_shards import write_rows_as_shard, write_table_shard
from proxykd.text.chat import ChatFormat
from proxykd.text.corpus import Reading, Record, Row, prompt_key
from proxykd.text.tokenising import TokenisedRecord, tokenise_all
from proxykd.text.tokenizer import tokenizer_hash

if TYPE_CHECKING:
    from proxykd.data.teacher_logprobs import Place, TokensByText

IDS = pa.list_(pa.int32())
TEACHER_TOP = pa.list_(pa.struct([("position", pa.int32()), ("ids", IDS), ("logps", pa.list_(pa.float32()))]))
"""The teacher's most likely tokens and their log-probs, where it gives them (proxykd/data/teacher_logprobs.py)."""
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt_ids", IDS),
        ("completion_ids", IDS),
        ("teacher_top", TEACHER_TOP),
        ("prompt", pa.string()),
        ("completion", pa.string()),
        ("prompt_key", pa.string()),
    ]
)


def write_corpus(
    run: RunDirectory, config: RunConfig, reading: Reading, chat: ChatFormat, sources: Sequence[str] = ()
) -> dict[str, Any]:
    """Splits, tokenises and writes every slice; returns and stores the counts.

    `sources` are the shards of a data set that grows which it was made of, for take_added to know.

    Raises:
        CorpusError: a slice would be empty, corpus.training_limit is beyond what there is, or alignment.teacher_kl has
            nothing to go by.
    """
    require_teacher_logprobs(config, reading)
    placed = place(reading.records, config.corpus, config.seed)
    if not config.corpus.prompts:  # answers that were paid for are used, though some prompts got none
        require_training_records(placed.training, config.corpus)
    facts = _write_slices(run, config, config.corpus.slices, placed.records, chat, "shard")
    require_few_refused(facts["refused"], len(placed.records), config)
    dropped = Counter(reading.dropped) + Counter(facts["dropped"])
    value = {
        **facts,
        "dropped": {reason: count for reason, count in sorted(dropped.items()) if count},
        "beyond_limit": placed.beyond_limit,
        "bad_lines": reading.bad_lines,
        "thoughts": reading.thoughts,
        "tokenizer": tokenizer_hash(chat.tokenizer),
        "sources": list(sources),
    }
    require_slices(config, facts, value["dropped"])
    write_json(run.corpus / "manifest.json", value)
    return value


def require_teacher_logprobs(config: RunConfig, reading: Reading) -> None:
    """Raises:
    CorpusError: alignment.teacher_kl has nothing to go by.
    """
    if config.alignment.teacher_kl and not any(record.top_logprobs for record in reading.records):
        raise CorpusError(
            "alignment.teacher_kl is set, but no record carries the teacher's log-probs; collect them with "
            "teacher.top_logprobs, or set alignment.teacher_kl=0"
        )


def require_slices(config: RunConfig, records: Mapping[str, int], dropped: Mapping[str, int]) -> None:
    """`records` are counted by slice.

    Raises:
        CorpusError: a slice that the run needs would be empty.
    """
    corpus = config.corpus
    uses = [use for use in USES if use != "alignment" or config.alignment.rounds]
    if empty := [name for name in (*HELD_OUT, *corpus.slices_for(*uses)) if not records[name]]:
        limit = corpus.training_limit
        within, raised = (f" within corpus.training_limit {limit}", "raise the limit, ") if limit else ("", "")
        raise CorpusError(
            f"{sum(records[name] for name in corpus.slices)} usable records{within} (dropped: "
            f"{dict(dropped) or 'none'}) leave the slice(s) {', '.join(empty)} empty; {raised}add records or enlarge "
            f"the shares in corpus.split"
        )


def require_few_refused(refused: Sequence[dict[str, str]], records: int, config: RunConfig) -> None:
    """Raises CorpusError where the chat template refuses more of the records than `corpus.max_bad_share`."""
    if len(refused) > config.corpus.max_bad_share * records:
        listed = "\n".join(f"  {one['id']}: {one['reason']}" for one in refused[:10])
        raise CorpusError(
            f"the chat template cannot render {len(refused)} of {records} records, above corpus.max_bad_share "
            f"{config.corpus.max_bad_share:g}; mend them, raise the share, or name another template with "
            f"proxy.chat_template:\n{listed}"
        )


def write_segment_slice(
    run: RunDirectory, config: RunConfig, number: int, placed: list[tuple[Record, str]], chat: ChatFormat
) -> dict[str, Any]:
    """The records of segment `number` (from 1), each with its slice; returns the counts."""
    return _write_slices(run, config, config.corpus.growing, placed, chat, f"segment-{number:03d}")


def _write_slices(
    run: RunDirectory,
    config: RunConfig,
    names: tuple[str, ...],
    placed: list[tuple[Record, str]],
    chat: ChatFormat,
    prefix: str,
) -> dict[str, Any]:
    from proxykd.data.teacher_logprobs import TokensByText  # brings torch

    records, slices = [record for record, _ in placed], [name for _, name in placed]
    found = tokenise_all(records, slices, chat, config.corpus.max_length, config.corpus.overlong)
    texts, tokens_by_text = {record.id: record for record in records}, TokensByText(chat)
    counts = {}
    for name in names:
        rows = [record for record in found.records if record.slice == name]
        rows.sort(key=lambda r: training_order(config.seed, r.id))
        _write_slice(run.corpus / name, prefix, rows, texts, tokens_by_text, config.corpus.shard_records)
        counts[name] = len(rows)
    dropped = Counter(found.notes)
    truncated = dropped.pop("truncated", 0)
    tokens = sum(len(r.completion_ids) for r in found.records)
    shape = {"records": len(found.records), **counts, "truncated": truncated, "tokens": tokens}
    return {**shape, "dropped": dict(dropped), "refused": found.refused}


def _write_slice(
    directory: Path,
    prefix: str,
    records: list[TokenisedRecord],
    texts: dict[str, Record],
    tokens_by_text: TokensByText,
    shard_records: int,
) -> None:
    for number, start in enumerate(range(0, len(records), shard_records)):
        part = records[start : start + shard_records]
        columns = {
            "id": [r.id for r in part],
            "prompt_ids": [r.prompt_ids for r in part],
            "completion_ids": [r.completion_ids for r in part],
            "teacher_top": [_teacher_top(texts[r.id], len(r.completion_ids), tokens_by_text) for r in part],
            "prompt": [texts[r.id].messages[-1]["content"] for r in part],
            "completion": [texts[r.id].completion for r in part],
            "prompt_key": [prompt_key(texts[r.id].messages) for r in part],
        }
        write_table_shard(directory / f"{prefix}-{number:05d}.parquet", pa.table(columns, schema=SCHEMA))


def _teacher_top(record: Record, tokens: int, tokens_by_text: TokensByText) -> list[Place] | None:
    if record.top_logprobs is None:
        return None
    return tokens_by_text.places(record.completion, record.top_logprobs, tokens)


def write_rows(directory: Path, rows: list[Row], shard_records: int) -> list[Path]:
    """Rows of the corpus as shards of their own; finished ones stand."""
    paths = []
    for number, start in enumerate(range(0, len(rows), shard_records)):
        path = directory / f"shard-{number:05d}.parquet"
        write_rows_shard(path, rows[start : start + shard_records])
        paths.append(path)
    return paths


def write_rows_shard(path: Path, rows: list[Row]) -> None:
    """Rows of the corpus as one shard; a finished one stands."""
    if unfinished(path):
        write_rows_as_shard(path, rows, SCHEMA)


def manifest(run: RunDirectory, segments: int | None = None) -> dict[str, Any]:
    """The counts of the corpus, with those of its first `segments` segments (None: of all)."""
    value: dict[str, Any] = read_json(run.corpus / "manifest.json")
    for number in range(1, 1 + (committed_segments(run) if segments is None else segments)):
        added = read_json(_segment(run, number))
        for key in (*run.config().corpus.growing, "records", "truncated", "tokens"):
            value[key] += added[key]
        value["dropped"] = dict(sorted((Counter(value["dropped"]) + Counter(added["dropped"])).items()))
        value["refused"] += added["refused"]
        value["sources"] += added["sources"]
    return value


def committed_segments(run: RunDirectory) -> int:
    """How many segments the corpus has grown by. They have no gaps."""
    number = 0
    while _segment(run, number + 1).exists():
        number += 1
    return number


def _segment(run: RunDirectory, number: int) -> Path:
    return run.corpus / "segments" / f"{number:03d}.json"


def slice_shards(run: RunDirectory, name: str, segments: int | None = None) -> list[Path]:
    """The shards of a slice in order: those it began with, then those of its first `segments` segments (or all)."""
    shards = sorted((run.corpus / name).glob("shard-*.parquet"))
    for number in range(1, 1 + (committed_segments(run) if segments is None else segments)):
        shards += sorted((run.corpus / name).glob(f"segment-{number:03d}-*.parquet"))
    return shards


def answer_shards(run: RunDirectory, adapter: str) -> list[Path]:
    """The shards of an adapter's answers to prompts that the teacher has not answered, in order."""
    return sorted(run.answers(adapter).glob("shard-*.parquet"))


def read_shard_rows(path: Path) -> list[Row]:
    """A corpus shard's rows after its checksum was verified, each with its `length` in tokens."""
    verify_shard(path)
    rows: list[Row] = read_table(path).to_pylist()
    for row in rows:
        row["length"] = len(row["prompt_ids"]) + len(row["completion_ids"])
    return rows


def read_slice(run: RunDirectory, name: str, segments: int | None = None) -> list[Row]:
    """All rows of a slice, in order. For the held-out slices and record counts; training streams instead."""
    return [row for path in slice_shards(run, name, segments) for row in read_shard_rows(path)]
