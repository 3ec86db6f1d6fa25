"""What a request will take in tokens, for the rate limit: learned from the answers so far."""

from __future__ import annotations

from proxykd.collection.budget import Usage
from proxykd.collection.requests import Request


class Lengths:
    """Prompts by their characters, completions by their mean, `max_tokens` before the first."""

    def __init__(self, max_tokens: int):
        self._characters, self._prompt_tokens = 4.0, 1.0
        self._completion, self._answers = float(max_tokens), 0

    def expected(self, request: Request) -> float:
        return self._prompt(request) + self._completion

    def learn(self, request: Request, used: Usage) -> float:
        """Returns by how many tokens the expectation was too low."""
        off = used.tokens - self.expected(request)
        self._characters += characters(request)
        self._prompt_tokens += used.prompt
        self._answers += 1
        self._completion += (used.completion - self._completion) / self._answers
        return off

    def _prompt(self, request: Request) -> float:
        return characters(request) * self._prompt_tokens / self._characters


def characters(request: Request) -> int:
    return sum(len(message["content"]) for message in request.messages)
