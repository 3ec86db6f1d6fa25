"""The bytes that each token of a vocabulary stands for in the midst of a text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from proxykd.errors import ModelError
from proxykd.text.control_tokens import control_tokens

SPACE = "\u2581"
"""What SentencePiece writes for a space."""
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
SENTENCEPIECE = {"Replace", "Metaspace", "ByteFallback", "Fuse", "Strip"}
"""Steps of a decoder that undoes SentencePiece. (`Strip` takes away a space at the very beginning alone.)"""


class TokenBytes:
    """By id: `pieces`, the bytes of a token, a control token's as it is spelt; `control_V`, which are control tokens;
    `names`, as the tokenizer calls them."""

    def __init__(self, tokenizer: Any):
        """Raises:
        ModelError: the decoder is neither byte-level nor SentencePiece's, so that a token's bytes are not known.
        """
        steps = _decoder_steps(tokenizer)
        kinds = {step["type"] for step in steps}
        byte_level = kinds == {"ByteLevel"}
        if not byte_level and not (kinds and kinds <= SENTENCEPIECE and all(map(_writes_spaces, steps))):
            raise ModelError(
                f"tokens cannot be aligned by bytes: the tokenizer's decoder has the steps {sorted(kinds)}; known are "
                f"ByteLevel, or those of SentencePiece ({', '.join(sorted(SENTENCEPIECE))}); choose another family"
            )
        self.names: list[str | None] = tokenizer.convert_ids_to_tokens(range(max(tokenizer.get_vocab().values()) + 1))
        read = _byte_level if byte_level else _sentencepiece
        self.pieces = [b"" if name is None else read(name, "ByteFallback" in kinds) for name in self.names]
        self.control_V = np.zeros(len(self.names), bool)
        for text, token_id in control_tokens(tokenizer).items():
            self.control_V[token_id] = True
            self.pieces[token_id] = text.encode()
        self.lengths_V = np.array([len(piece) for piece in self.pieces], np.int64)

    def __len__(self) -> int:
        return len(self.pieces)

    def meanings(self) -> Iterator[tuple[bool, bytes]]:
        """What each token stands for: two of any vocabularies with the same are the same on a page."""
        return zip(self.control_V.tolist(), self.pieces, strict=True)

    def is_byte(self, token_id: int) -> bool:
        """Whether it is one of SentencePiece's 256 tokens for single bytes."""
        return BYTE_TOKEN.fullmatch(self.names[token_id] or "") is not None


def _decoder_steps(tokenizer: Any) -> list[dict[str, Any]]:
    decoder = tokenizer.backend_tokenizer.decoder
    state: dict[str, Any] = {"type": "none"} if decoder is None else json.loads(decoder.__getstate__())
    steps: list[dict[str, Any]] = state.get("decoders", [state])
    return steps


def _writes_spaces(step: dict[str, Any]) -> bool:
    """Whether a replacing step is SentencePiece's, from its sign for a space to a space."""
    if step["type"] == "Replace":
        return bool(step["pattern"] == {"String": SPACE} and step["content"] == " ")
    return bool(step["type"] != "Metaspace" or step["replacement"] == SPACE)


def _sentencepiece(name: str, byte_fallback: bool) -> bytes:
    byte = BYTE_TOKEN.fullmatch(name) if byte_fallback else None
    return name.replace(SPACE, " ").encode() if byte is None else bytes.fromhex(byte[1])


def _byte_level(name: str, _: bool) -> bytes:
    """An added token whose text holds other characters than those for bytes stands for its text."""
    return bytes(map(BYTE_OF.__getitem__, name)) if BYTE_OF.keys() >= set(name) else name.encode()


def _bytes_by_character() -> dict[str, int]:
    """Byte-level BPE's alphabet (GPT-2): printable Latin-1 stands for itself, the other bytes in order from U+0100."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("\u00a1"), ord("\u00ac") + 1), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {chr(256 + at): byte for at, byte in enumerate(others)}


BYTE_OF = _bytes_by_character()
