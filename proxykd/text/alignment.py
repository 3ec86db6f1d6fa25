"""Two tokenizers' tokens of the same reply, cut where both have a boundary.

Positions are bytes of the reply as the template writes it, counted from the first byte of the teacher's text: below 0
lies what the template writes before it. A stop token takes one position, whatever it is called, so that stop stands
beside stop. Where the two templates write the same before the text, it is aligned like text; where they do not, the
text alone is, and likewise with what stands between text and stop token. A token that begins in what its template
writes before the text and ends in the text then counts from the text on: the template's part of it is given.

Everything is linear in the tokens of a reply.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from proxykd.errors import AlignmentError
from proxykd.text.chat import ChatFormat, Written
from proxykd.text.corpus import Record
from proxykd.text.token_bytes import TokenBytes
from proxykd.text.tokenizer import SAMPLE

Form = Literal["NFC", "NFD"]
"""Unicode forms of the same characters. Others (NFKC, lower case) say something else, and are refused."""
FORMS: tuple[tuple[Form | None, str], ...] = ((None, " "), ("NFC", ""), ("NFC", " "), ("NFD", ""), ("NFD", " "))
"""What a tokenizer may have made of a text, and what it put before it."""
CHANGED = -1
AROUND = 12
"""Bytes that an error shows before and after the first that differs."""


@dataclass(frozen=True)
class ReplyBytes:
    """One tokenizer's T tokens of a reply."""

    written: Written
    ids_T: np.ndarray
    ends_T: np.ndarray
    """Where each ends, or the last position before it that is known."""
    known_T: np.ndarray
    """False inside what a normaliser changed."""
    stopped: bool
    """Whether the last token is the stop token."""


@dataclass(frozen=True)
class Alignment:
    """S spans of the same bytes. Span s is the proxy's tokens proxy_cuts[s] to proxy_cuts[s + 1] and the student's
    between its own cuts; tokens outside the cuts have no counterpart."""

    proxy_cuts: np.ndarray
    student_cuts: np.ndarray
    bytes_S: np.ndarray
    """A stop token counts as one."""


class ByteReader:
    """Reads the replies of one tokenizer as bytes."""

    def __init__(self, chat: ChatFormat):
        """Raises:
        ModelError: a decoder that is not known.
        AlignmentError: the tokenizer changes a text of many kinds of characters beyond its Unicode form.
        """
        self.chat = chat
        self.tokens = TokenBytes(chat.tokenizer)
        probe = Record("probe", (), SAMPLE)
        self.read(probe, chat.reply_ids(probe))

    def read(self, record: Record, ids: Sequence[int]) -> ReplyBytes:
        """A record's reply, of which `ids` are `chat.reply_ids` or their first ones.

        Raises:
            AlignmentError: the tokens do not stand for the reply's bytes, with the first that differ.
        """
        written, ids_T = self.chat.written(record), np.asarray(ids, np.int64)
        stopped = bool(len(ids_T)) and ids_T[-1] == self.chat.stop_token_id
        plain_T = ids_T[: len(ids_T) - stopped]
        before, text = (written.opening + written.lead).encode(), (written.text + written.separator).encode()
        found = self.bytes_of(plain_T.tolist())
        if found == before + text or (not stopped and (before + text).startswith(found)):
            ends_T = np.cumsum(self.tokens.lengths_V[plain_T]) - len(before)
            known_T = np.ones(len(ends_T), bool)
        else:
            ends_T, known_T = self._changed(written, plain_T, stopped)
        if stopped:
            ends_T, known_T = np.append(ends_T, len(text) + 1), np.append(known_T, True)
        return ReplyBytes(written, ids_T, ends_T, known_T, stopped)

    def ids_within(self, text: str) -> list[int]:
        """The ids of a text in the midst of another; none where they do not stand for its bytes."""
        ids = self.chat.ids_after(self._anchor, text) or []
        return ids if self.bytes_of(ids) == text.encode() else []

    def bytes_of(self, ids: Sequence[int]) -> bytes:
        return b"".join(map(self.tokens.pieces.__getitem__, ids))

    @cached_property
    def _anchor(self) -> str:
        """What keeps a tokenizer from putting a space before a text: mostly nothing."""
        anchors = ("", "\n", ".")
        probes = ("x", " x")
        kept = (
            all(self.bytes_of(self.chat.ids_after(anchor, probe) or []) == probe.encode() for probe in probes)
            for anchor in anchors
        )
        return next((anchor for anchor, kept_one in zip(anchors, kept, strict=True) if kept_one), anchors[0])

    def _changed(self, written: Written, ids_T: np.ndarray, whole: bool) -> tuple[np.ndarray, np.ndarray]:
        """Ends and which are known, where the tokens stand for other bytes than were written: for a space more after a
        control token (SentencePiece), or for another Unicode form of the same characters."""
        [*_, first] = [-1, *np.flatnonzero(self.tokens.control_V[ids_T])]
        after_T = ids_T[first + 1 :]
        found = self.bytes_of(after_T.tolist())
        expected = written.lead + written.text + written.separator
        for form, space in FORMS:
            said, positions = _said(expected, form, space)
            if found == said or (not whole and said.startswith(found)):
                ends_T = positions[np.cumsum(self.tokens.lengths_V[after_T])]
                known_T = np.append(np.zeros(first + 1, bool), ends_T != CHANGED)
                ends_T = np.append(np.zeros(first + 1, np.int64), np.maximum.accumulate(ends_T))
                return ends_T - len(written.lead.encode()), known_T
        raise _differs(expected.encode(), found)


def align(proxy: ReplyBytes, student: ReplyBytes) -> Alignment:
    """The spans of a reply between the positions at which both sides have a boundary."""
    same_lead = (proxy.written.opening, proxy.written.lead) == (student.written.opening, student.written.lead)
    same_separator = proxy.written.separator == student.written.separator
    (proxy_at, proxy_cuts), (student_at, student_cuts) = (
        _boundaries(side, same_lead, same_separator) for side in (proxy, student)
    )
    common, of_proxy, of_student = np.intersect1d(proxy_at, student_at, return_indices=True)
    return Alignment(proxy_cuts[of_proxy], student_cuts[of_student], np.diff(common))


def _boundaries(side: ReplyBytes, same_lead: bool, same_separator: bool) -> tuple[np.ndarray, np.ndarray]:
    """Positions at which one side can be cut, ascending, and how many of its tokens lie before each."""
    written = side.written
    before = len((written.opening + written.lead).encode())
    text_end = len(written.text.encode())
    at = np.concatenate([[-before], side.ends_T])
    cut = np.concatenate([[True], side.known_T])
    if not same_lead:
        crossing = int(np.searchsorted(at, 0, side="right")) - 1
        cut[:crossing] = False
        at[crossing], cut[crossing] = 0, True
    if not same_separator:
        cut &= at <= text_end
        if side.stopped:
            at[-1], cut[-1] = text_end + 1, True
    return at[cut], np.flatnonzero(cut)


def _said(text: str, form: Form | None, space: str) -> tuple[bytes, np.ndarray]:
    """The bytes of a text in a Unicode form with a space before it or none, and by each position in them that in the
    text itself; CHANGED in the space and inside what the form changed.

    What the form joins or reorders is one cluster: from a character that it leaves apart from those before to the next.
    """
    said, positions, at = [space], [CHANGED] * len(space), 0
    for cluster in [text] if form is None else _clusters(text, form):
        changed = cluster if form is None else unicodedata.normalize(form, cluster)
        length = len(cluster.encode())
        positions += [
            at,
            *(range(at + 1, at + length) if changed == cluster else [CHANGED] * (len(changed.encode()) - 1)),
        ]
        said.append(changed)
        at += length
    return "".join(said).encode(), np.array([*positions, at], np.int64)


def _clusters(text: str, form: Form) -> Iterator[str]:
    cluster = ""
    for character in text:
        apart = unicodedata.normalize(form, cluster) + unicodedata.normalize(form, character)
        if cluster and (unicodedata.combining(character) or unicodedata.normalize(form, cluster + character) != apart):
            cluster += character
        else:
            if cluster:
                yield cluster
            cluster = character
    if cluster:
        yield cluster


def _differs(expected: bytes, found: bytes) -> AlignmentError:
    pairs = enumerate(zip(expected, found, strict=False))
    at = next((at for at, (ours, theirs) in pairs if ours != theirs), min(len(expected), len(found)))
    wanted, got = (text[max(at - AROUND, 0) : at + AROUND] for text in (expected, found))
    return AlignmentError(
        f"the tokenizer does not keep the text: at byte {at} {wanted!r} became {got!r}; leave the text out, or choose "
        f"a model whose tokenizer keeps it"
    )
