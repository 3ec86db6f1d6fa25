"""Text to token ids in which a control token is one that the chat template wrote, never one that a text spells.

A prompt or completion may hold `<|im_end|>` as text: a page about chat templates, or an attack. Tokenizers make the
control token of it wherever it stands. Here a text is *escaped* before it is rendered, so that in the rendering every
control token that is spelt out is the template's; the tokenizer that encodes it knows its control tokens by other
names, which no text holds.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from proxykd.errors import ModelError, TemplateError

TEXT_MARK, TOKEN_MARK, FIRST = "\U000f0000", "\U00100000", 0xF0100
"""Private-use characters: a mark and a number stand for a control token's text, or for the token itself."""
PIPED = re.compile(r"<[|\uff5c].*[|\uff5c]>", re.DOTALL)
"""`<|im_end|>`, or with the full-width bars of DeepSeek's."""
TAG = re.compile(r"</?[^<>\s]+>|\[/?[^\[\]\s]+\]")


@dataclass(frozen=True)
class Encoded:
    """Token ids, and which characters of the encoded text each stands for: its first and the one after its last."""

    ids: list[int]
    spans: list[tuple[int, int]]


def control_tokens(tokenizer: Any) -> dict[str, int]:
    """The tokens that structure a conversation, by text: those marked special, `<|...|>`, and tags of the template with
    what closes them.

    Other added tokens (a tokenizer's runs of spaces, HTML tags) are text.
    """
    template = tokenizer.chat_template or ""
    template = template if isinstance(template, str) else json.dumps(template, ensure_ascii=False)
    found = {}
    for token_id, token in tokenizer.added_tokens_decoder.items():
        text: str = token.content
        written = TAG.fullmatch(text) is not None and (text in template or text.replace("/", "", 1) in template)
        if text.strip() and (token.special or PIPED.fullmatch(text) or written):
            found[text] = int(token_id)
    return found


class TextEncoder:
    """Encodes renderings whose texts were escaped."""

    def __init__(self, tokenizer: Any):
        """Raises:
        ModelError: a tokenizer that is not one of the `tokenizers` library.
        """
        if getattr(tokenizer, "backend_tokenizer", None) is None:
            raise ModelError(
                f"{type(tokenizer).__name__} is no tokenizer with a tokenizer.json, so that control tokens in a text "
                f"cannot be told from the template's; save it as a fast one first"
            )
        self.control = control_tokens(tokenizer)
        self._tokens = list(self.control)
        alternatives = "|".join(re.escape(token) for token in sorted(self._tokens, key=len, reverse=True))
        self._spelt = re.compile(alternatives or r"(?!)")
        self._tokenizer = tokenizer

    def escape(self, value: Any) -> Any:
        """A message's text, or all texts of nested lists and mappings, with no control token spelt in them.

        Raises:
            TemplateError: a text holds one of the two private-use characters that mark control tokens here.
        """
        if isinstance(value, str):
            if TEXT_MARK in value or TOKEN_MARK in value:
                marks = f"U+{ord(TEXT_MARK):X} or U+{ord(TOKEN_MARK):X}"
                raise TemplateError(f"a text holds the private-use character {marks}, which marks control tokens here")
            return self._spelt.sub(lambda found: TEXT_MARK + self._number(found[0]), value)
        if isinstance(value, dict):
            return {key: self.escape(one) for key, one in value.items()}
        return [self.escape(one) for one in value] if isinstance(value, list | tuple) else value

    def unescape(self, text: str) -> str:
        """Escaped text as it was."""
        return re.sub(f"{TEXT_MARK}(.)", lambda found: self._tokens[ord(found[1]) - FIRST], text)

    def spells(self, text: str) -> str | None:
        """The first control token spelt in `text`, or None."""
        found = self._spelt.search(text)
        return None if found is None else found[0]

    def last_spelt(self, text: str) -> int:
        """Returns the character at which the last control token of a rendering begins; 0 without one."""
        return max((found.start() for found in self._spelt.finditer(text)), default=0)

    def split_after_last(self, rendered: str) -> tuple[str, str]:
        """A rendering through the last control token spelt in it, and what follows that."""
        end = max((found.end() for found in self._spelt.finditer(rendered)), default=0)
        return rendered[:end], rendered[end:]

    def named(self, rendered: str) -> str:
        """A rendering as the tokenizer gets it: escaped control tokens as text, those spelt in it by their marks."""
        return self.unescape(self._spelt.sub(lambda found: TOKEN_MARK + self._number(found[0]), rendered))

    def encode(self, rendered: str) -> Encoded:
        """A rendering's token ids: its control tokens are those spelt in it, escaped ones are text."""
        encoding = self._backend.encode(self.named(rendered), add_special_tokens=False)
        return Encoded([self._own_ids.get(token_id, token_id) for token_id in encoding.ids], encoding.offsets)

    def after(self, anchor: str, rendered: str) -> Encoded | None:
        """The tokens of a rendering that follow those of `anchor`; None where one token spans the two."""
        before, both = self.encode(anchor).ids, self.encode(anchor + rendered)
        if both.ids[: len(before)] != before:
            return None
        first, spans = len(self.named(anchor)), both.spans[len(before) :]
        return Encoded(both.ids[len(before) :], [(start - first, end - first) for start, end in spans])

    def _number(self, token: str) -> str:
        return chr(FIRST + self._numbers[token])

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {token: number for number, token in enumerate(self._tokens)}

    @cached_property
    def _own_ids(self) -> dict[int, int]:
        """Ids of added tokens in the backend: those of the tokenizer itself."""
        return {self._backend.token_to_id(name): token_id for name, token_id in self._names.items()}

    @cached_property
    def _names(self) -> dict[str, int]:
        """Every added token by what the backend calls it: control tokens by their marks."""
        return {
            TOKEN_MARK + self._number(token.content) if token.content in self.control else token.content: token_id
            for token_id, token in self._tokenizer.added_tokens_decoder.items()
        }

    @cached_property
    def _backend(self) -> Any:
        """The tokenizer's own model with every control token renamed to its mark; their flags stay."""
        from tokenizers import AddedToken, Tokenizer

        original = self._tokenizer.backend_tokenizer
        renamed = Tokenizer(original.model)
        if original.normalizer is not None:
            renamed.normalizer = original.normalizer
        if original.pre_tokenizer is not None:
            renamed.pre_tokenizer = original.pre_tokenizer
        tokens = zip(self._names, self._tokenizer.added_tokens_decoder.values(), strict=True)
        renamed.add_tokens(
            [
                AddedToken(name, single_word=t.single_word, lstrip=t.lstrip, rstrip=t.rstrip, normalized=t.normalized)
                for name, t in tokens
            ]
        )
        return renamed
