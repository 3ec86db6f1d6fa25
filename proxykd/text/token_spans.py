"""Token ids as text that shows which of it is a control token."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple


class Span(NamedTuple):
    """Neighbouring tokens of one kind, as text; a control token is a span of its own."""

    text: str
    control: bool


def spans(tokenizer: Any, ids: Sequence[int], control: set[int], start: int = 0) -> list[Span]:
    """`ids` from `start` on, as they read after those before."""
    found: list[Span] = []
    for is_control, group in groupby(ids[start:], key=control.__contains__):
        run = list(group)
        if is_control:
            found += [Span(tokenizer.convert_ids_to_tokens(token_id), True) for token_id in run]
        else:
            found.append(Span(_text(tokenizer, ids, start, start + len(run)), False))
        start += len(run)
    return found


def _text(tokenizer: Any, ids: Sequence[int], start: int, end: int) -> str:
    """ids[start:end] decoded where they stand: SentencePiece strips the space that opens what it decodes alone."""
    before, through = (_decoded(tokenizer, ids[:to]) for to in (start, end))
    return through[len(before) :] if through.startswith(before) else _decoded(tokenizer, ids[start:end])


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
