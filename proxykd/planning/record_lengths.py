"""Records in tokens, before and after the corpus' rules: their lengths, and the room that their prompts leave."""

from __future__ import annotations

import math
import sys
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from proxykd.config import CorpusConfig, RunConfig, Use
from proxykd.errors import TemplateError
from proxykd.text.chat import ChatFormat
from proxykd.text.corpus import Record
from proxykd.text.tokenising import TokenisedRecord, tokenise

QUANTILES = (0.0, 0.1, 0.5, 0.9, 0.99, 1.0)


@dataclass(frozen=True)
class Measured:
    """One record in tokens, before and after the corpus' rules."""

    record: Record
    slice: str
    prompt: int
    completion: int
    """The whole completion with its stop token. 0 tokens on both sides where the record could not be tokenised."""
    kept: int | None
    """Tokens of the completion that are trained on; None where the record is dropped."""
    note: str | None
    """What was done to the record, or why it is dropped."""
    detail: str | None = None
    """What the chat template says where it refuses the record."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of one side over all records that could be tokenised."""

    name: str
    at: tuple[int, ...]
    """At QUANTILES, each an actual length (nearest rank)."""
    mean: float

    @classmethod
    def of(cls, name: str, values: Iterable[int]) -> Lengths | None:
        ordered = sorted(values)
        if not ordered:
            return None
        ranks = [max(1, math.ceil(q * len(ordered))) for q in QUANTILES]
        return cls(name, tuple(ordered[rank - 1] for rank in ranks), fmean(ordered))


@dataclass(frozen=True)
class SampleRoom:
    """How long the samples for a slice's prompts may be: what max_length leaves, and max_new_tokens where it is set."""

    slice: str
    max_new_tokens: int | None
    room: Lengths
    cut_as_own: float
    """The share of samples that would end by length if each were as long as the teacher's completion of its prompt."""
    cut_as_any: float
    """The share that would if each were as long as the teacher's completion of a prompt drawn at random."""


def measure(record: Record, slice_name: str, chat: ChatFormat, corpus: CorpusConfig) -> Measured:
    """A record's tokens, and what the rules make of it."""
    try:
        whole, note = tokenise(record, slice_name, chat, sys.maxsize, "drop")
    except TemplateError as error:
        return Measured(record, slice_name, 0, 0, None, "template_refuses", str(error))
    if whole is None:
        return Measured(record, slice_name, 0, 0, None, note)
    prompt, completion = len(whole.prompt_ids), len(whole.completion_ids)
    fitted: TokenisedRecord | None = whole
    if prompt + completion > corpus.max_length - 2:  # the rule itself is tokenise's
        fitted, note = tokenise(record, slice_name, chat, corpus.max_length, corpus.overlong)
    return Measured(record, slice_name, prompt, completion, len(fitted.completion_ids) if fitted else None, note)


def spread(total: int, most: int) -> list[int]:
    """Returns at most `most` of the indices below `total`, at even distances."""
    taken = min(total, most)
    return [i * total // taken for i in range(taken)]


def typical(measured: Sequence[Measured], count: int) -> list[Measured]:
    """`count` records at even quantiles of the length: short, middling, long."""
    ordered = sorted(measured, key=lambda m: (m.prompt + m.completion, m.record.id))
    places = [(2 * i + 1) * len(ordered) // (2 * count) for i in range(count)]
    return [ordered[place] for place in dict.fromkeys(places) if place < len(ordered)]


def sample_rooms(
    config: RunConfig, kept: Mapping[str, Sequence[Measured]], by_student: Mapping[str, Sequence[Measured]]
) -> Iterator[SampleRoom]:
    """Returns the SampleRoom of every slice for whose prompts the run draws completions, in the tokens of who draws
    them: the proxy or an open teacher, or in an on-policy phase the student."""
    teaching, white_box, alignment, corpus = config.teaching, config.white_box, config.alignment, config.corpus
    drawn: list[tuple[str, int | None, Mapping[str, Sequence[Measured]]]] = []
    if teaching.aligned and alignment.preference and alignment.rounds:
        drawn.append((corpus.slice_for("alignment"), alignment.max_new_tokens, kept))
    if teaching.open_teacher and white_box is not None:
        others: tuple[Use, ...] = ("warmup", "alignment") if teaching.assistant else ()
        drawn += [(name, white_box.max_new_tokens, kept) for name in corpus.slices_for("distillation", *others)]
    if config.on_policy is not None:
        drawn.append((corpus.slice_for("distillation"), config.on_policy.max_new_tokens, by_student))
    for name, limit, read in drawn:
        rooms = [min(corpus.max_length - m.prompt, limit or sys.maxsize) for m in read[name]]
        own = [m.completion for m in read[name]]
        if (room := Lengths.of("room of a sample", rooms)) is None:
            continue
        ordered, pairs = sorted(own), list(zip(own, rooms, strict=True))
        above = sum(len(own) - bisect_right(ordered, each) for each in rooms)
        cut = fmean(length > each for length, each in pairs)
        yield SampleRoom(name, limit, room, cut, above / len(own) ** 2)
