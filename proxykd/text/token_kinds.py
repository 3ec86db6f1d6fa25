"""What tokens are, by their bytes: words, digits, spaces, punctuation, parts of a character, control tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

KINDS = ("word", "digits", "space", "punctuation", "part of a character", "control")


def kinds_of(pieces: Sequence[bytes], control_V: np.ndarray) -> np.ndarray:
    """[V] of each token its place in KINDS, the space before it aside."""
    found = [KINDS.index(kind(piece)) for piece in pieces]
    return np.where(control_V, KINDS.index("control"), np.array(found, np.int64))


def kind(piece: bytes) -> str:
    """Of a token that is no control token."""
    try:
        text = piece.decode()
    except UnicodeDecodeError:
        return "part of a character"
    bare = text.strip()
    return "space" if not bare else "word" if bare.isalpha() else "digits" if bare.isdigit() else "punctuation"
