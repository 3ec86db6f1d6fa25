"""Reading (prompt, completion) records from the formats of the field, and their checks.

A record is a conversation: `messages` holds all before the teacher's completion y (the last assistant message).
"""

from __future__ import annotations

import hashlib
import json
import math
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from proxykd.config import CorpusConfig, Reasoning
from proxykd.errors import CorpusError
from proxykd.text.layouts import WITHOUT_REPLY, Message, layout_of, read_conversation, split_thoughts, without_thoughts
from proxykd.text.sources import BadRow, parsed, rows_of

BAD_LINE = "bad_line"
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


@dataclass(frozen=True)
class RowRead:
    """What a row gave: a record, or why it is left out."""

    record: Record | None
    left_out: str = ""
    """The reason by which it is counted."""
    detail: str = ""
    """Of a bad line: what is wrong with it."""
    thoughtful: bool = False
    """Whether it had thoughts before its answer."""


@dataclass
class Reading:
    """What reading a corpus gave: how many records, and what was left out and why."""

    records: list[Record] = field(default_factory=list)
    """Where they are asked for as a list."""
    dropped: Counter[str] = field(default_factory=Counter)
    bad_lines: list[dict[str, Any]] = field(default_factory=list)
    thoughts: int = 0
    """How many kept records had thoughts before their answer."""
    rows: int = 0
    kept: int = 0
    told: int = 0
    """How many kept records carry the teacher's log-probs."""

    def leave_out(self, where: str, reason: str, detail: str) -> None:
        """Counts a row that gave no record; a bad line is listed too."""
        if reason == BAD_LINE:
            self.bad_lines.append({"line": where, "reason": detail})
        else:
            self.dropped[reason] += 1

    def keep(self, thoughtful: bool, told: bool) -> None:
        self.kept += 1
        self.thoughts += thoughtful
        self.told += told

    def add(self, other: Reading) -> None:
        """Takes in what another file gave."""
        self.records += other.records
        self.dropped.update(other.dropped)
        self.bad_lines += other.bad_lines
        for name in ("thoughts", "rows", "kept", "told"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def judge(self, path: str, config: CorpusConfig, may_be_empty: bool = False) -> None:
        """Raises CorpusError where nothing is usable, or more lines are bad than `max_bad_share`."""
        bad = len(self.bad_lines)
        self.dropped[BAD_LINE] += bad
        if bad > config.max_bad_share * self.rows:
            listed = "\n".join(f"  {b['line']}: {b['reason']}" for b in self.bad_lines[:10])
            raise CorpusError(
                f"{bad} of {self.rows} lines of {path} cannot be used, above corpus.max_bad_share "
                f"{config.max_bad_share:g}; mend them or raise the share:\n{listed}"
            )
        if not self.kept and not may_be_empty:
            why = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items() if count)
            raise CorpusError(
                f"{path} holds no usable record{f' (left out: {why})' if why else ''}; expected `messages`, or "
                f"`prompt` and `completion`, a line"
            )


def beside_text(record: Record) -> str:
    """What of a record its last message and its completion do not say, as JSON; mostly {}. `record_of` reads it."""
    last = {"role": "user", "content": record.messages[-1]["content"]}
    beside = {
        "before": list(record.messages[:-1]),
        "last": None if record.messages[-1] == last else record.messages[-1],
        "cut_off": not record.stopped,
        "reasoning": record.reasoning,
        "tool_calls": list(record.tool_calls),
        "tools": list(record.tools),
    }
    return json.dumps({name: value for name, value in beside.items() if value}, ensure_ascii=False)


def record_of(row: Row) -> Record:
    """The record that a row of the run's corpus was made of, without the teacher's log-probs.

    Raises:
        CorpusError: the row was written by a version that did not keep it.
    """
    if row.get("beside") is None:
        raise CorpusError(f"the corpus' row {row['id']!r} holds no whole conversation; begin the run anew with --fresh")
    beside = json.loads(row["beside"])
    return Record(
        row["id"],
        (*beside.get("before", ()), beside.get("last") or {"role": "user", "content": row["prompt"]}),
        row["completion"],
        not beside.get("cut_off", False),
        reasoning=beside.get("reasoning"),
        tool_calls=tuple(beside.get("tool_calls", ())),
        tools=tuple(beside.get("tools", ())),
    )


def normalised_prompt(messages: tuple[Message, ...]) -> str:
    """The text by which prompts are the same: case, white space, Unicode form and system messages aside."""
    turns = (f"{m['role']}:{m['content'].strip()}" for m in messages if m["role"] != "system")
    return " ".join(unicodedata.normalize("NFKC", "\n".join(turns)).casefold().split())


def _said(record: Record) -> str:
    """y as a whole, by which records are the same."""
    calls = json.dumps(record.tool_calls, sort_keys=True) if record.tool_calls else ""
    return f"{record.reasoning or ''}\0{record.completion}\0{calls}"


def record_keys(record: Record) -> tuple[bytes, bytes]:
    """By what a record is known again, 16 bytes each: its normalised prompt with all of y, and its id."""
    prompt = hashlib.sha256(normalised_prompt(record.messages).encode()).digest()
    said = hashlib.sha256(prompt + _said(record).encode()).digest()
    return said[:16], hashlib.sha256(record.id.encode()).digest()[:16]


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


def records_of(config: CorpusConfig, reading: Reading, may_be_empty: bool = False) -> Iterator[Record]:
    """The records of `config.path`, one after the other: JSONL (also .gz, .zst) or Parquet, a folder of them, a data
    set of `proxykd collect`. `reading` counts them, and what is left out.

    Raises:
        CorpusError: no such file, an unknown format; at the end nothing usable, or more bad lines than `max_bad_share`.
    """
    assert config.path is not None
    yield from _admitted(config.path, config, reading)
    reading.judge(config.path, config, may_be_empty)


def _admitted(path: str, config: CorpusConfig, reading: Reading) -> Iterator[Record]:
    known = Known(set(), set())
    for where, row in rows_of(path, "corpus.path"):
        if config.limit is not None and reading.kept >= config.limit:
            return
        reading.rows += 1
        read = read_row(row, config)
        reason = known.repeats(*record_keys(read.record)) if read.record else read.left_out
        if read.record is None or reason:
            reading.leave_out(where, reason, read.detail)
        else:
            reading.keep(read.thoughtful, read.record.top_logprobs is not None)
            yield read.record


class Keys(Protocol):
    """A set of hashes, in memory or on disk."""

    def __contains__(self, key: bytes) -> bool: ...

    def add(self, key: bytes) -> None: ...


class Known:
    """The records so far, by `record_keys`."""

    def __init__(self, said: Keys, named: Keys):
        self._said, self._named = said, named

    def repeats(self, said: bytes, named: bytes) -> str:
        """Why a record is left out, beside those before it that were kept; empty where it is kept too."""
        if said in self._said:
            return "duplicate"
        if named in self._named:
            return "duplicate_id"
        self._said.add(said)
        self._named.add(named)
        return ""


def read_row(row: Any, config: CorpusConfig) -> RowRead:
    """A row as the corpus takes it: its record as it is taught, or why it gives none."""
    try:
        record = parse_row(row, config.format)
    except BadRow as reason:
        return RowRead(None, BAD_LINE, str(reason))
    if record is None:
        return RowRead(None, "other_model")
    return _as_taught(record, config.reasoning)


def parse_row(row: Any, layout: str = "auto") -> Record | None:
    """One row in any of the known layouts; None for a row of another model than the one asked for (Nectar).

    Raises:
        BadRow: what is wrong with it.
    """
    found = read_conversation(row, layout)
    if found.reply is None:
        name = layout_of(row) if layout == "auto" else layout
        if name == "nectar":
            return None
        raise BadRow(WITHOUT_REPLY[name].format(keys=sorted(row)))
    messages, calls = found.messages, tuple(found.reply.get("tool_calls", ()))
    thoughts, answer = split_thoughts(found.reply)
    if not answer.strip() and not calls and thoughts is None:
        raise BadRow("the completion is empty")
    _require_prompt(messages)
    identity = json.dumps([messages, found.reply["content"], *calls], ensure_ascii=False, sort_keys=True)
    return Record(
        _own_id(row) or hashlib.sha256(identity.encode()).hexdigest()[:16],
        tuple(map(without_thoughts, messages)),
        answer,
        row.get("finish_reason") != "length",
        _top_logprobs(row.get("top_logprobs")) if thoughts is None else None,
        thoughts,
        calls,
        found.tools,
    )


def _require_prompt(messages: list[Message]) -> None:
    if not any(m["role"] == "user" and m["content"].strip() for m in messages):
        raise BadRow("the prompt is empty")


def _own_id(row: dict[str, Any]) -> str | None:
    """A row's id. Blank ones, 0 and NaN are none: where a source has no ids, these stand in every row."""
    value = row.get("id")
    none = not value or (isinstance(value, float) and not math.isfinite(value))
    return None if none else str(value).strip() or None


def _top_logprobs(value: Any) -> list[dict[str, Any]] | None:
    """The teacher's log-probs, or JSON of them; None where it is something else of that name: the text is worth no
    less."""
    if isinstance(value, str):
        try:
            value = parsed(value)
        except BadRow:
            return None
    return value if isinstance(value, list) and value and all(map(_is_place, value)) else None


def _is_place(value: Any) -> bool:
    """Whether it is a token's text with the likeliest ones there, as proxykd/collection/requests.py has them."""
    if not isinstance(value, dict) or not isinstance(value.get("token"), str) or not isinstance(value.get("top"), list):
        return False
    return all(isinstance(one, list) and len(one) == 2 and _is_likely(*one) for one in value["top"])


def _is_likely(text: Any, logprob: Any) -> bool:
    return isinstance(text, str) and isinstance(logprob, (int, float)) and -1e6 < logprob < 1


def _as_taught(record: Record, reasoning: Reasoning) -> RowRead:
    """The record with what `corpus.reasoning` makes of its thoughts, or why it is left out."""
    if record.reasoning is None:
        return RowRead(record)
    if reasoning == "drop_record":
        return RowRead(None, "reasoning")
    if not record.completion.strip() and not record.tool_calls:
        return RowRead(None, "thoughts_without_an_answer")
    return RowRead(record if reasoning == "train" else replace(record, reasoning=None), thoughtful=True)


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
        own_id = _own_id(row)
        record_id = own_id or hashlib.sha256(text.encode()).hexdigest()[:16]
        if record_id not in prompts:
            prompts[record_id] = Record(record_id, messages, "")
        elif own_id and prompts[record_id].messages != messages:
            raise CorpusError(f"{source} {where}: the id {record_id} is another prompt's already; ids name one prompt")
    if not prompts:
        raise CorpusError(f"{source} holds no prompt; a row has `prompt`, or `messages`")
    return list(prompts.values())


def _prompt_of(row: Any) -> tuple[Message, ...]:
    """The conversation that the teacher is to go on with."""
    messages = read_conversation(row).messages
    _require_prompt(messages)
    return tuple(messages)
