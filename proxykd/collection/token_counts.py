"""How many tokens a request took where the provider does not tell."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from proxykd.collection.habits import LENGTH
from proxykd.collection.requests import Reply, Request
from proxykd.text.tokenizer import read_tokenizer

BYTES_A_TOKEN = 3
"""Fewer than the tokenizers of today put into one of usual text in any language, so that a budget holds."""
AROUND_A_MESSAGE = 4
"""Tokens of a chat format around each message."""


class TokenCounts:
    """Counts by a tokenizer, or by bytes where none is named."""

    def __init__(self, tokenizer: str | None):
        """Raises:
        ModelError: no tokenizer can be read from that folder.
        """
        self._tokenizer: Any = None if tokenizer is None else read_tokenizer(Path(tokenizer))

    def of_text(self, text: str) -> int:
        """Returns about how many tokens a text is."""
        if self._tokenizer is None:
            return -(-len(text.encode(errors="surrogatepass")) // BYTES_A_TOKEN)
        return len(self._tokenizer.encode(text.encode(errors="replace").decode(), add_special_tokens=False))

    def completed(self, request: Request, reply: Reply, max_tokens: int) -> Reply:
        """Returns the reply with every count, those that the provider did not tell as estimates. What ended at its
        limit took `max_tokens`."""
        prompt, completion = reply.prompt_tokens, reply.completion_tokens
        if prompt is not None and completion is not None:
            return reply
        if prompt is None:
            prompt = sum(self.of_text(message["content"]) + AROUND_A_MESSAGE for message in request.messages)
        if completion is None:
            completion = max_tokens if reply.finish_reason == LENGTH else self.of_text(reply.text)
        return replace(reply, prompt_tokens=prompt, completion_tokens=completion, estimated=True)
