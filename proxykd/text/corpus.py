"""Reading (prompt, completion) records from the formats of the field, and their checks.

A record is a conversation: `messages` holds all before the teacher's completion y (the last assistant message).
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from proxykd.config import CorpusConfig, Reasoning
from proxykd.errors import CorpusError
from proxykd.text.layouts import Message, layout_of, read_conversation, split_thoughts, without_thoughts
from proxykd.text.sources import BadRow, rows_of

Row = dict[str, Any]
"""A tokenised record with what its stage adds, as shards keep it and training streams it."""


@dataclass(frozen=True)
class Record:
    """One (x, y): the messages before y, y itself, and whether the teacher ended it (or ran into its limit)."""

    id: str
    messages: tuple[Message, ...]
    completion: str
    stopped: bool = True
    top_logprobs: list[dict[str, Any]] | None = None
    """The teacher's log-probs (proxykd/collection/requests.py), None where it gave none."""
    reasoning: str | None = None
    """The teacher's thoughts before y, where they are trained on."""
    tool_calls: tuple[dict[str, Any], ...] = ()
    """What y calls; its text may then be empty."""
    tools: tuple[dict[str, Any], ...] = ()
    """The functions that the teacher could call."""


@dataclass
class Reading:
    """What reading a corpus gave: records, and what was left out and why."""

    records: list[Record] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    bad_lines: list[dict[str, Any]] = field(default_factory=list)
    thoughts: int = 0
    """How many kept records had thoughts before their answer."""


def normalised_prompt(messages: tuple[Message, ...]) -> str:
    """The text by which prompts are the same: case, white space, Unicode form and system messages aside."""
    turns = (f"{m['role']}:{m['content'].strip()}" for m in messages if m["role"] != "system")
    return " ".join(unicodedata.normalize("NFKC", "\n".join(turns)).casefold().split())


def _said(record: Record) -> str:
    """y as a whole, by which records are the same."""
    calls = json.dumps(record.tool_calls, sort_keys=True) if record.tool_calls else ""
    return f"{record.reasoning or ''}\0{record.completion}\0{calls}"


def prompt_key(messages: tuple[Message, ...]) -> str:
    """What records of the same normalised prompt share, and no others: 16 hex digits of its hash."""
    return hashlib.sha256(normalised_prompt(messages).encode()).hexdigest()[:16]


def slice_of(messages: tuple[Message, ...], corpus: CorpusConfig) -> str:
    """The slice that a prompt belongs to: a stable hash of the normalised prompt, whatever else is in the corpus."""
    split = corpus.split
    position = int(prompt_key(messages), 16) / 2**64
    held_out = split.validation + split.test
    if position < held_out:
        return "validation" if position < split.validation else "test"
    position = (position - held_out) / (1.0 - held_out)
    if position < split.warmup:
        return corpus.slice_for("warmup")
    return corpus.slice_for("alignment" if position < split.warmup + split.alignment else "distillation")


def read_corpus(config: CorpusConfig, may_be_empty: bool = False) -> Reading:
    """Reads `config.path`: JSONL (also .gz) or Parquet, a folder of them, a data set of `proxykd collect`.

    Raises:
        CorpusError: no such file, an unknown format, nothing usable, or more bad lines than `max_bad_share`.
    """
    assert config.path is not None
    reading = Reading()
    seen: set[tuple[str, str]] = set()
    ids: set[str] = set()
    rows = 0
    for where, row in rows_of(config.path, "corpus.path"):
        if config.limit is not None and len(reading.records) >= config.limit:
            break
        rows += 1
        try:
            record = parse_row(row, config.format)
        except BadRow as reason:
            reading.bad_lines.append({"line": where, "reason": str(reason)})
            continue
        if record is None:
            reading.dropped["other_model"] += 1
            continue
        thoughtful = record.reasoning is not None
        if (taught := _as_taught(record, config.reasoning, reading.dropped)) is None:
            continue
        record = taught
        key = (normalised_prompt(record.messages), _said(record))
        if key in seen:
            reading.dropped["duplicate"] += 1
        elif record.id in ids:
            reading.dropped["duplicate_id"] += 1
        else:
            seen.add(key)
            ids.add(record.id)
            reading.records.append(record)
            reading.thoughts += thoughtful
    _judge(config.path, rows, reading, config, may_be_empty)
    return reading


def _judge(path: str, rows: int, reading: Reading, config: CorpusConfig, may_be_empty: bool) -> None:
    reading.dropped["bad_line"] += len(reading.bad_lines)
    bad = len(reading.bad_lines)
    if bad > config.max_bad_share * rows:
        listed = "\n".join(f"  {b['line']}: {b['reason']}" for b in reading.bad_lines[:10])
        raise CorpusError(
            f"{bad} of {rows} lines of {path} cannot be used, above corpus.max_bad_share {config.max_bad_share:g}; "
            f"mend them or raise the share:\n{listed}"
        )
    if not reading.records and not may_be_empty:
        raise CorpusError(f"{path} holds no usable record; expected `messages`, or `prompt` and `completion`, a line")


def parse_row(row: Any, layout: str = "auto") -> Record | None:
    """One row in any of the known layouts; None for a row of another model than the one asked for (Nectar).

    Raises:
        BadRow: what is wrong with it.
    """
    found = read_conversation(row, layout)
    if found is None:
        return None
    messages, calls = found.messages, tuple(found.reply.get("tool_calls", ()))
    thoughts, answer = split_thoughts(found.reply)
    if not answer.strip() and not calls and thoughts is None:
        raise BadRow("the completion is empty")
    if not any(m["role"] == "user" and m["content"].strip() for m in messages):
        raise BadRow("the prompt is empty")
    identity = json.dumps([messages, found.reply["content"], *calls], ensure_ascii=False, sort_keys=True)
    record_id = str(row["id"]) if row.get("id") is not None else hashlib.sha256(identity.encode()).hexdigest()[:16]
    return Record(
        record_id,
        tuple(map(without_thoughts, messages)),
        answer,
        row.get("finish_reason") != "length",
        _top_logprobs(row) if thoughts is None else None,
        thoughts,
        calls,
        found.tools,
    )


def _top_logprobs(row: dict[str, Any]) -> list[dict[str, Any]] | None:
    value = row.get("top_logprobs")
    return json.loads(value) if isinstance(value, str) else value


def _as_taught(record: Record, reasoning: Reasoning, dropped: Counter[str]) -> Record | None:
    """The record with what `corpus.reasoning` makes of its thoughts; None where it is left out, and counted."""
    if record.reasoning is None:
        return record
    if reasoning == "drop_record":
        dropped["reasoning"] += 1
        return None
    if not record.completion.strip() and not record.tool_calls:
        dropped["thoughts_without_an_answer"] += 1
        return None
    return record if reasoning == "train" else replace(record, reasoning=None)


def read_prompts(source: str | Path, key: str = "prompts") -> list[Record]:
    """Prompts to be answered, from a file, a folder or hf:NAME: rows with `prompt` (and `system`) or `messages`, or in
    any layout that a corpus has, whose completion is left aside; with optional `id`.

    Returns records whose completion is still empty. `key` is the setting that named the source, for messages.

    Raises:
        CorpusError: no such source, nothing in it, a torn line, an empty prompt, or an id of two prompts.
    """
    prompts: dict[str, Record] = {}
    for where, row in rows_of(source, key):
        try:
            messages = _prompt_of(row)
        except BadRow as reason:
            raise CorpusError(f"{source} {where}: {reason}") from None
        system = " ".join(m["content"] for m in messages if m["role"] == "system")
        text = normalised_prompt(messages) + system
        record_id = str(row.get("id") or hashlib.sha256(text.encode()).hexdigest()[:16])
        if record_id not in prompts:
            prompts[record_id] = Record(record_id, messages, "")
        elif row.get("id") and prompts[record_id].messages != messages:
            raise CorpusError(f"{source} {where}: the id {record_id} is another prompt's already; ids name one prompt")
    if not prompts:
        raise CorpusError(f"{source} holds no prompt; a row has `prompt`, or `messages`")
    return list(prompts.values())


def _prompt_of(row: Any) -> tuple[Message, ...]:
    """The conversation that the teacher is to go on with."""
    if isinstance(row, dict):
        row = {"completion": "", "response": "", **row}
        if layout_of(row) == "messages" and isinstance(row["messages"], list):
            row["messages"] = [*_before_reply(row["messages"]), {"role": "assistant", "content": ""}]
    found = read_conversation(row)
    messages = tuple(found.messages) if found is not None else ()
    if not any(m["role"] == "user" and m["content"].strip() for m in messages):
        raise BadRow("the prompt is empty")
    return messages


def _before_reply(messages: list[Any]) -> list[Any]:
    replied = messages and isinstance(messages[-1], dict) and messages[-1].get("role") == "assistant"
    return messages[:-1] if replied else messages
