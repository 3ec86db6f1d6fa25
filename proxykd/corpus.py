"""Reading (prompt, completion) records from the formats of the field, and their checks.

A record is a conversation: `messages` holds all before the teacher's completion y (the last assistant message).
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from proxykd.config import CorpusConfig, SplitConfig
from proxykd.errors import CorpusError
from proxykd.sources import BadRow, rows_of

Message = dict[str, str]
Row = dict[str, Any]
"""A tokenised record with what its stage adds, as shards keep it and training streams it."""
ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Record:
    """One (x, y): the messages before y, y itself, and whether the teacher ended it (or ran into its limit)."""

    id: str
    messages: tuple[Message, ...]
    completion: str
    stopped: bool = True
    top_logprobs: list[dict[str, Any]] | None = None
    """What a grey box tells of its tokens (proxykd/collection/asks.py), else None."""


@dataclass
class Reading:
    """What reading a corpus gave: records, and what was left out and why."""

    records: list[Record] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    bad_lines: list[dict[str, Any]] = field(default_factory=list)


def normalised_prompt(messages: tuple[Message, ...]) -> str:
    """The text by which prompts are the same: case, white space, Unicode form and system messages aside."""
    turns = (f"{m['role']}:{m['content'].strip()}" for m in messages if m["role"] != "system")
    return " ".join(unicodedata.normalize("NFKC", "\n".join(turns)).casefold().split())


def slice_of(messages: tuple[Message, ...], split: SplitConfig) -> str:
    """The slice that a prompt belongs to: a stable hash of the normalised prompt, whatever else is in the corpus."""
    digest = hashlib.sha256(normalised_prompt(messages).encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    held_out = split.validation + split.test
    if position < held_out:
        return "validation" if position < split.validation else "test"
    position = (position - held_out) / (1.0 - held_out)
    if position < split.warmup:
        return "warmup"
    return "alignment" if position < split.warmup + split.alignment else "distillation"


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
        key = (normalised_prompt(record.messages), record.completion)
        if key in seen:
            reading.dropped["duplicate"] += 1
        elif record.id in ids:
            reading.dropped["duplicate_id"] += 1
        else:
            seen.add(key)
            ids.add(record.id)
            reading.records.append(record)
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
    """One row in any of the known layouts; None for a row of another model than the one asked for (Nectar)."""
    if isinstance(row, BadRow):
        raise row
    if not isinstance(row, dict):
        raise BadRow(f"a {type(row).__name__}, not an object")
    reader = _READERS[_detect(row) if layout == "auto" else layout]
    parsed = reader(row)
    if parsed is None:
        return None
    messages, completion = parsed
    if not isinstance(completion, str) or not completion.strip():
        raise BadRow("the completion is empty")
    if not any(m["role"] == "user" and m["content"].strip() for m in messages):
        raise BadRow("the prompt is empty")
    identity = json.dumps([messages, completion], ensure_ascii=False, sort_keys=True)
    record_id = str(row["id"]) if row.get("id") is not None else hashlib.sha256(identity.encode()).hexdigest()[:16]
    return Record(record_id, tuple(messages), completion, row.get("finish_reason") != "length", _told(row))


def _told(row: dict[str, Any]) -> list[dict[str, Any]] | None:
    told = row.get("top_logprobs")
    return json.loads(told) if isinstance(told, str) else told


def _detect(row: dict[str, Any]) -> str:
    if "messages" in row:
        return "messages"
    if "system_prompt" in row and "question" in row:
        return "openorca"
    if "answers" in row and "prompt" in row:
        return "nectar"
    return "completion"


def _messages(row: dict[str, Any]) -> tuple[list[Message], Any]:
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRow("`messages` is missing or empty")
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise BadRow(f"a message without a role of {ROLES}")
        if not isinstance(message.get("content"), str):
            raise BadRow("a message whose content is not text")
    clean = [{"role": m["role"], "content": m["content"]} for m in messages]
    if clean[-1]["role"] != "assistant":
        raise BadRow("the last message is not the assistant's")
    return _with_system(row, clean[:-1]), clean[-1]["content"]


def _completion(row: dict[str, Any]) -> tuple[list[Message], Any]:
    prompt = row.get("prompt")
    completion = row.get("completion", row.get("response"))
    if not isinstance(prompt, str) or completion is None:
        raise BadRow(f"neither `messages` nor `prompt` with `completion`; its keys are {sorted(row)}")
    return _with_system(row, [{"role": "user", "content": prompt}]), completion


def _openorca(row: dict[str, Any]) -> tuple[list[Message], Any]:
    question = row.get("question")
    if not isinstance(question, str):
        raise BadRow("`question` is missing")
    system = {"system": row.get("system_prompt")}
    return _with_system(system, [{"role": "user", "content": question}]), row.get("response")


def _nectar(row: dict[str, Any]) -> tuple[list[Message], Any] | None:
    """Nectar ranks the answers of several models; only GPT-4's are the teacher's."""
    answers = row.get("answers")
    if not isinstance(answers, list) or not isinstance(row.get("prompt"), str):
        raise BadRow("`prompt` or `answers` is missing")
    chosen = next((a for a in answers if isinstance(a, dict) and str(a.get("model", "")).startswith("gpt-4")), None)
    if chosen is None:
        return None
    return _nectar_turns(row["prompt"]), chosen.get("answer")


def _nectar_turns(prompt: str) -> list[Message]:
    """Nectar's prompts are `\\n\\nHuman: ...\\n\\nAssistant: ` transcripts, of one turn or several."""
    messages: list[Message] = []
    for part in prompt.split("\n\nHuman: "):
        if not part.strip():
            continue
        question, *replies = part.split("\n\nAssistant:")
        messages.append({"role": "user", "content": question.strip()})
        messages += [{"role": "assistant", "content": r.strip()} for r in replies if r.strip()]
    return messages


def _with_system(row: dict[str, Any], messages: list[Message]) -> list[Message]:
    system = row.get("system")
    if not isinstance(system, str) or not system.strip() or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": system}, *messages]


_READERS: dict[str, Callable[[dict[str, Any]], tuple[list[Message], Any] | None]] = {
    "messages": _messages,
    "completion": _completion,
    "openorca": _openorca,
    "nectar": _nectar,
}


def read_prompts(source: str | Path) -> list[Record]:
    """Prompts to be collected, from a file, a folder or hf:NAME: rows with `prompt` (and `system`) or `messages`, or in
    any layout that a corpus has, whose completion is left aside; with optional `id`.

    Returns records whose completion is still empty.

    Raises:
        CorpusError: no such source, nothing in it, a torn line, an empty prompt, or an id of two prompts.
    """
    prompts: dict[str, Record] = {}
    for where, row in rows_of(source, "prompts"):
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
    if isinstance(row, BadRow):
        raise row
    if not isinstance(row, dict):
        raise BadRow(f"a {type(row).__name__}, not an object")
    layout = _detect(row)
    if layout == "messages":
        ask = {"role": "assistant", "content": ""}
        given = row["messages"] if isinstance(row["messages"], list) else []
        told = given[:-1] if given and isinstance(given[-1], dict) and given[-1].get("role") == "assistant" else given
        row = {**row, "messages": [*told, ask]}
    parsed = _READERS[layout]({"completion": "", "response": "", **row})
    messages = tuple(parsed[0]) if parsed is not None else ()
    if not any(m["role"] == "user" and m["content"].strip() for m in messages):
        raise BadRow("the prompt is empty")
    return messages
