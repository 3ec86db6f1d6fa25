"""What the models will see of a corpus, computed from its text and the tokenizer's files alone."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from proxykd.collection.requests import with_system
from proxykd.config import CorpusConfig, Reasoning, RunConfig
from proxykd.data.corpus_segments import reading_of, records_at_first
from proxykd.data.corpus_store import require_few_refused, require_slices, require_teacher_logprobs
from proxykd.data.slices import Placed, place, require_training_records, training_order
from proxykd.errors import CorpusError
from proxykd.planning.packings import Packing, Tokens, packings
from proxykd.planning.record_lengths import Lengths, Measured, SampleRoom, measure, sample_rooms, spread, typical
from proxykd.text.chat import ChatFormat
from proxykd.text.control_tokens import control_tokens
from proxykd.text.corpus import Reading, Record, read_prompts
from proxykd.text.token_spans import Span, spans
from proxykd.text.tokenising import tokenise

SAMPLE = 20_000
"""Records that are tokenised of a larger corpus, evenly spread over it."""
PLACEHOLDER = "."
EXAMPLES, OPENING = 2, 24
"""Kept for each reason; and characters of a prompt by which a record that brought no id is found again."""


@dataclass(frozen=True)
class Reason:
    """Why records are left out, or what is done to them."""

    name: str
    count: int
    total: int
    """Of so many: the rows that were read, or the records that were tokenised."""
    dropped: bool
    examples: tuple[str, ...]


@dataclass(frozen=True)
class SliceCount:
    """A slice's records: read, tokenised, kept; and the tokens of those that are kept."""

    name: str
    read: int
    tokenised: int
    kept: int
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Shown:
    """A record as the models see it."""

    measured: Measured
    prompt: tuple[Span, ...]
    completion: tuple[Span, ...]
    """Without the stop token."""
    stop: Span | None
    """None where the completion ends by length."""


@dataclass(frozen=True)
class Preview:
    records: int
    """That were read."""
    used: int
    """Of them: all, or those within corpus.training_limit."""
    tokenised: int
    """Of these: all, or a sample (SAMPLE)."""
    has_completions: bool
    lengths: tuple[Lengths, ...]
    over_length: int
    """Tokenised records that are longer than corpus.max_length."""
    reasons: tuple[Reason, ...]
    slices: tuple[SliceCount, ...]
    rooms: tuple[SampleRoom, ...]
    packings: tuple[Packing, ...]
    shown: tuple[Shown, ...]
    refusal: str | None
    """What a run would say and end once it has tokenised the corpus, or None."""

    @property
    def sampled(self) -> bool:
        return self.tokenised < self.used


def preview(
    config: RunConfig, tokenizer: Any, reading: Reading, student: Any = None, *, shown: int = 3, most: int = SAMPLE
) -> Preview:
    """What a run of `config` would make of what `read` gave; at most `most` records are tokenised, and `shown` of them
    are kept as text. `student` is the student's tokenizer, where it has one of its own.

    Raises:
        TemplateError: the chat template does not do.
    """
    chat, corpus = ChatFormat(tokenizer), config.corpus
    placed = place(reading.records, corpus, config.seed, each=records_of_one(config))
    used = placed.records
    measured = [measure(*used[i], chat, corpus) for i in spread(len(used), most)]
    by_slice = {name: [m for m in measured if m.slice == name] for name in corpus.slices}
    sizes = Counter(name for _, name in used)
    counts = tuple(_count(name, sizes[name], rows) for name, rows in by_slice.items())
    reasons = (*_read_reasons(reading, corpus.reasoning), *_beyond_limit(placed), *_token_reasons(measured))
    kept = {
        name: sorted((m for m in rows if m.kept is not None), key=lambda m: training_order(config.seed, m.record.id))
        for name, rows in by_slice.items()
    }
    has_completions = corpus.prompts is None
    own = student is not None and has_completions
    by_student = _measured_again(kept, ChatFormat(student), corpus) if own else kept
    return Preview(
        records=len(reading.records),
        used=len(used),
        tokenised=len(measured),
        has_completions=has_completions,
        lengths=_lengths(measured, has_completions),
        over_length=sum(m.prompt + m.completion > corpus.max_length for m in measured),
        reasons=reasons,
        slices=counts,
        rooms=tuple(sample_rooms(config, kept, by_student)) if has_completions else (),
        packings=tuple(_scaled(each, counts) for each in packings(config, _trained(kept), _trained(by_student)))
        if has_completions
        else (),
        shown=tuple(show(m, chat, corpus) for m in typical([m for rows in kept.values() for m in rows], shown)),
        refusal=_refusal(config, reading, placed, counts, measured),
    )


def _measured_again(
    kept: Mapping[str, list[Measured]], chat: ChatFormat, corpus: CorpusConfig
) -> dict[str, list[Measured]]:
    """The records in other tokens, without those that do not fit in them."""
    found = {name: [measure(m.record, name, chat, corpus) for m in rows] for name, rows in kept.items()}
    return {name: [m for m in rows if m.kept is not None] for name, rows in found.items()}


def _trained(kept: Mapping[str, list[Measured]]) -> dict[str, list[Tokens]]:
    return {name: [Tokens(m.prompt, m.kept or 0) for m in rows] for name, rows in kept.items()}


def records_of_one(config: RunConfig) -> int:
    """How many records each stands for that `read` gives: a prompt, as many as the teacher is to be asked for."""
    return config.teacher.samples if config.corpus.prompts is not None else 1


def read(config: RunConfig) -> tuple[Reading, str | None]:
    """What a run of `config` would read, however bad, and what the run would say if it ended there.

    Prompts whose completions are yet to be collected get a PLACEHOLDER for one.

    Raises:
        CorpusError: there is nothing to read, or prompts that `proxykd collect` refuses.
    """
    corpus = config.corpus
    if corpus.prompts is not None:
        return Reading(list(records_in(config))), None
    try:
        return reading_of(config), None
    except CorpusError as error:
        lenient = corpus.model_copy(update={"max_bad_share": 1.0})
        return reading_of(config.model_copy(update={"corpus": lenient}), may_be_empty=True), str(error)


def records_in(config: RunConfig) -> Iterator[Record]:
    """The records that a run of `config` would read, one after the other; of prompts as `read` has them.

    Raises:
        CorpusError: as read_prompts, or records_of.
    """
    if config.corpus.prompts is None:
        yield from records_at_first(config, Reading())
        return
    system = config.teacher.system
    for prompt in read_prompts(config.corpus.prompts, "corpus.prompts")[: config.corpus.limit]:
        yield replace(prompt, messages=with_system(prompt.messages, system), completion=PLACEHOLDER)


def show(measured: Measured, chat: ChatFormat, corpus: CorpusConfig) -> Shown:
    """Returns a record as training sees it: the spans of prompt and completion, and the stop token if it has one."""
    record, _ = tokenise(measured.record, measured.slice, chat, corpus.max_length, corpus.overlong)
    assert record is not None
    control = {*control_tokens(chat.tokenizer).values(), chat.stop_token_id}
    ids = [*record.prompt_ids, *record.completion_ids]
    stops = bool(record.completion_ids) and record.completion_ids[-1] == chat.stop_token_id
    end = len(ids) - stops
    prompt = spans(chat.tokenizer, record.prompt_ids, control)
    completion = spans(chat.tokenizer, ids[:end], control, start=len(record.prompt_ids))
    stop = Span(chat.tokenizer.convert_ids_to_tokens(chat.stop_token_id), True) if stops else None
    return Shown(measured, tuple(prompt), tuple(completion), stop)


def _lengths(measured: list[Measured], has_completions: bool) -> tuple[Lengths, ...]:
    known = [m for m in measured if m.prompt]
    sides = [("prompt", [m.prompt for m in known])]
    if has_completions:
        sides.append(("completion", [m.completion for m in known]))
        sides.append(("whole", [m.prompt + m.completion for m in known]))
    return tuple(found for name, values in sides if (found := Lengths.of(name, values)))


def _count(name: str, read: int, rows: list[Measured]) -> SliceCount:
    kept = [m for m in rows if m.kept is not None]
    return SliceCount(name, read, len(rows), len(kept), sum(m.prompt for m in kept), sum(m.kept or 0 for m in kept))


def _read_reasons(reading: Reading, reasoning: Reasoning) -> list[Reason]:
    total = len(reading.records) + sum(reading.dropped.values())
    lines: dict[str, list[str]] = defaultdict(list)
    for bad in reading.bad_lines:
        name, *detail = re.split("[:;] ", bad["reason"], maxsplit=1)
        lines[name].append(" ".join([str(bad["line"]), *(f"({each})" for each in detail)]))
    reasons = [Reason(name, len(at), total, True, tuple(at[:EXAMPLES])) for name, at in lines.items()]
    others = [(name, count) for name, count in reading.dropped.items() if count and name != "bad_line"]
    reasons += [Reason(name, count, total, True, ()) for name, count in others]
    if reading.thoughts:
        name = "thoughts_trained_on" if reasoning == "train" else "thoughts_left_out"
        reasons.append(Reason(name, reading.thoughts, total, False, ()))
    return reasons


def _beyond_limit(placed: Placed) -> list[Reason]:
    if not placed.beyond_limit:
        return []
    return [Reason("beyond_limit", placed.beyond_limit, len(placed.records) + placed.beyond_limit, True, ())]


def _token_reasons(measured: list[Measured]) -> list[Reason]:
    groups: dict[tuple[str, bool], list[Measured]] = defaultdict(list)
    for m in measured:
        if m.note is not None:
            groups[m.note, m.kept is None].append(m)
    return [
        Reason(name, len(of), len(measured), dropped, tuple(map(_example, of[:EXAMPLES])))
        for (name, dropped), of in groups.items()
    ]


def _example(m: Measured) -> str:
    length = m.detail if m.detail is not None else f"{m.prompt} + {m.completion}"
    text = " ".join(m.record.messages[-1]["content"].split())
    opening = text if len(text) <= OPENING else text[:OPENING] + "…"
    return f"{m.record.id}: {length}, “{opening}”"


def _scaled(packing: Packing, counts: Sequence[SliceCount]) -> Packing:
    """Of the whole corpus, where a sample of it was tokenised."""
    mine = [count for count in counts if count.name in packing.slices]
    scale = sum(count.read for count in mine) / sum(count.tokenised for count in mine)
    return replace(packing, records=round(scale * packing.records), steps=math.ceil(scale * packing.steps))


def _refusal(
    config: RunConfig, reading: Reading, placed: Placed, counts: Sequence[SliceCount], measured: Sequence[Measured]
) -> str | None:
    """What writing the corpus would raise. Of a sample, its counts stand for the whole corpus."""
    scale = len(placed.records) / max(1, len(measured))
    dropped = Counter(reading.dropped) + Counter(str(m.note) for m in measured if m.kept is None)
    refused = [{"id": m.record.id, "reason": m.detail} for m in measured if m.detail is not None]
    try:
        require_training_records(placed.training * records_of_one(config), config.corpus)
        if config.corpus.prompts is None:
            require_teacher_logprobs(config, reading)
        require_few_refused(refused, len(measured), config)
        require_slices(config, {count.name: math.ceil(scale * count.kept) for count in counts}, dropped)
    except CorpusError as error:
        return str(error)
    return None
