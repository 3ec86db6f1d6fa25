"""A corpus' records as token ids within a length, and what becomes of those that do not fit."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

from proxykd.text.chat import ChatFormat
from proxykd.text.corpus import Record


@dataclass(frozen=True)
class TokenisedRecord:
    """x and y as token ids. y ends with the stop token unless the teacher's reply ended by length."""

    id: str
    slice: str
    prompt_ids: list[int]
    completion_ids: list[int]


def tokenise(
    record: Record, slice_name: str, chat: ChatFormat, max_length: int, overlong: Literal["drop", "truncate"]
) -> tuple[TokenisedRecord | None, str | None]:
    """One record as token ids within `max_length`, and what was done to it: None, "truncated" or a drop reason.

    Raises:
        TemplateError: the chat template refuses the conversation, or leaves a part of it out.
    """
    prompt_ids = chat.prompt_ids(record.messages, record.tools)
    completion_ids = chat.reply_ids(record)
    room = max_length - len(prompt_ids)
    if room < 2:
        return None, "prompt_too_long"
    if not completion_ids:
        return None, "no_supervised_token"
    fits = len(completion_ids) <= room
    if not fits and overlong == "drop":
        return None, "completion_too_long"
    return TokenisedRecord(record.id, slice_name, prompt_ids, completion_ids[:room]), None if fits else "truncated"


def ids_hash(ids: list[int]) -> str:
    """SHA-256 of a completion's token ids (as 32-bit little endian), 16 hex digits: what soft labels belong to."""
    return hashlib.sha256(b"".join(i.to_bytes(4, "little") for i in ids)).hexdigest()[:16]
