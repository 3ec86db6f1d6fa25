"""Where a token of the proxy's vocabulary goes in the student's: its **image**.

- A token of the same bytes, if the student has one; control tokens go to those spelt alike, the stop token to the
  stop token.
- Otherwise the first of the student's tokens for these bytes, if the student's tokenizer cuts them so where they
  stand: with s the student's tokens before and w the bytes of the proxy's token, T(text of s + w) must be s and then
  tokens of w alone. A w that is no whole characters, or that would merge with s, has no image.

Several of the proxy's tokens may have one image: `12` and `1` both go to `1` where the student cuts digits apart.

The student's tokens before are a window: back to one that begins a word (a space, then something else), or WINDOW
tokens and to where a character begins. Merges of BPE do not reach beyond such a place, nor does a pre-tokenizer's
pattern.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from proxykd.text.alignment import ByteReader, ReplyBytes, align

NONE = -1
WINDOW = 8
MOST_PATHS = 2**20
"""That are remembered."""
CHARACTER, WORD = 1, 2


@dataclass(frozen=True)
class Pairing:
    """What of a reply's tokens stands for the same bytes on both sides."""

    proxy_at_N: np.ndarray
    """By the student's token: the proxy's that is one to one with it, the same bytes or both the stop token; else
    NONE."""
    chunks_S4: np.ndarray
    """All other spans: the proxy's first token, how many it has, the student's first, how many it has."""


class VocabularyMap:
    """From one proxy's vocabulary to one student's."""

    def __init__(self, proxy: ByteReader, student: ByteReader):
        self.proxy, self.student = proxy, student
        numbers: dict[tuple[bool, bytes], int] = {}
        self._proxy_keys_V, self._student_keys_V = (
            np.array([numbers.setdefault(meaning, len(numbers)) for meaning in side.tokens.meanings()], np.int64)
            for side in (proxy, student)
        )
        self._proxy_keys_V[proxy.chat.stop_token_id] = self._student_keys_V[student.chat.stop_token_id] = len(numbers)
        self._keys = len(numbers) + 1
        self._paths: dict[tuple[tuple[int, ...], int], int] = {}

    @cached_property
    def same_V(self) -> np.ndarray:
        """By id of the proxy: the student's token for the same bytes, or NONE.

        Of several, the one that the proxy's is called like; else the one that is no byte token of SentencePiece.
        """
        by_key = np.full(self._keys, NONE, np.int64)
        tokens = self.student.tokens
        ids = np.arange(len(tokens))
        bytes_last = np.array([tokens.is_byte(token_id) for token_id in ids.tolist()])
        for some in (ids[bytes_last], ids[~bytes_last]):
            by_key[self._student_keys_V[some]] = some
        same_V = by_key[self._proxy_keys_V]
        named = {name: token_id for token_id, name in enumerate(tokens.names)}
        for token_id, name in enumerate(self.proxy.tokens.names):
            other = named.get(name, NONE)
            if other != NONE and self._student_keys_V[other] == self._proxy_keys_V[token_id]:
                same_V[token_id] = other
        return same_V

    def pair(self, proxy: ReplyBytes, student: ReplyBytes) -> Pairing:
        """Which tokens of the two stand for the same bytes of a reply."""
        spans = align(proxy, student)
        firsts_S2 = np.stack([spans.proxy_cuts[:-1], spans.student_cuts[:-1]], 1)
        lengths_S2 = np.stack([np.diff(spans.proxy_cuts), np.diff(spans.student_cuts)], 1)
        alone_S = (lengths_S2 == 1).all(1)
        ours, theirs = firsts_S2[alone_S].T
        same = self._proxy_keys_V[proxy.ids_T[ours]] == self._student_keys_V[student.ids_T[theirs]]
        alone_S[alone_S] = same
        proxy_at_N = np.full(len(student.ids_T), NONE, np.int64)
        proxy_at_N[theirs[same]] = ours[same]
        chunks_S4 = np.stack([firsts_S2[:, 0], lengths_S2[:, 0], firsts_S2[:, 1], lengths_S2[:, 1]], 1)
        return Pairing(proxy_at_N, chunks_S4[~alone_S])

    def images(self, pairing: Pairing, student: ReplyBytes, top_ids_TK: np.ndarray) -> np.ndarray:
        """[N, K] images of the proxy's top K ids at the student's tokens that are one to one, NONE elsewhere.

        The student's own token there is the image of those of its bytes.
        """
        places = np.flatnonzero(pairing.proxy_at_N != NONE)
        ids_nK = top_ids_TK[pairing.proxy_at_N[places]]
        own_n1 = student.ids_T[places][:, None]
        images_nK = np.where(self._student_keys_V[own_n1] == self._proxy_keys_V[ids_nK], own_n1, self.same_V[ids_nK])
        for row, column in np.argwhere((images_nK == NONE) & ~self.proxy.tokens.control_V[ids_nK]):
            images_nK[row, column] = self.path(student, int(places[row]), int(ids_nK[row, column]))
        images_NK = np.full((len(student.ids_T), top_ids_TK.shape[1]), NONE, np.int64)
        images_NK[places] = images_nK
        return images_NK

    def path(self, student: ReplyBytes, place: int, token_id: int) -> int:
        """The first of the student's tokens for one of the proxy's, as they follow its tokens up to `place`."""
        window = self._window(student.ids_T, place)
        key = (window, token_id)
        if key not in self._paths:
            if len(self._paths) >= MOST_PATHS:
                self._paths.clear()
            self._paths[key] = self._first(window, self.proxy.tokens.pieces[token_id])
        return self._paths[key]

    def _window(self, ids_T: np.ndarray, place: int) -> tuple[int, ...]:
        first, control_V = place, self.student.tokens.control_V
        while first and not control_V[ids_T[first - 1]]:
            first -= 1
            begins = self._begins_V[ids_T[first]]
            if begins == WORD or (begins == CHARACTER and place - first >= WINDOW):
                break
        return tuple(ids_T[first:place].tolist())

    @cached_property
    def _begins_V(self) -> np.ndarray:
        """By id of the student: whether a token begins a WORD, a CHARACTER, or within one (0)."""
        pieces = self.student.tokens.pieces
        words = np.array([piece[:1] == b" " and not piece[:2].isspace() for piece in pieces])
        within = np.array([0x80 <= ord(piece[:1] or b" ") < 0xC0 for piece in pieces])
        return np.where(words, WORD, np.where(within, 0, CHARACTER))

    def _first(self, window: tuple[int, ...], piece: bytes) -> int:
        try:
            text = (self.student.bytes_of(window) + piece).decode()
        except UnicodeDecodeError:
            return NONE
        ids = self.student.ids_within(text)
        return ids[len(window)] if len(ids) > len(window) and tuple(ids[: len(window)]) == window else NONE
