"""What is said between a user and several models: all hear the same prompts, each has its own replies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from proxykd.models.speaker import Said
from proxykd.text.layouts import Message

WHO = {
    "student": "what the run is for",
    "sft": "the student by SFT on the same text",
    "proxy": "what the student learned from",
    "base": "the student's model as it began",
}
"""The models that a run may have, in a word."""


@dataclass
class Reply:
    """What a model has said so far."""

    text: str = ""
    tokens: int = 0
    ended: str | None = None

    def add(self, said: Said) -> None:
        self.text += said.text
        self.tokens, self.ended = said.tokens, said.ended

    @property
    def told(self) -> str:
        """Its length, and why it goes no further if the model has not ended it."""
        counted = f"{self.tokens} token{'' if self.tokens == 1 else 's'}"
        return f"{counted}, cut" if self.ended == "length" else counted


class Conversations:
    """One a model, by name; `system` stands before each."""

    def __init__(self, names: Iterable[str]):
        self._turns: dict[str, list[Message]] = {name: [] for name in names}
        self.system = ""

    def asked(self, prompt: str) -> dict[str, list[Message]]:
        """Every conversation with the prompt as its last turn."""
        before = [{"role": "system", "content": self.system}] if self.system else []
        asked = {"role": "user", "content": prompt}
        return {name: [*before, *turns, asked] for name, turns in self._turns.items()}

    def keep(self, prompt: str, replies: Mapping[str, Reply]) -> None:
        for name, turns in self._turns.items():
            turns.append({"role": "user", "content": prompt})
            turns.append({"role": "assistant", "content": replies[name].text})

    def forget(self) -> None:
        """Begins anew; the system message stays."""
        for turns in self._turns.values():
            turns.clear()
