"""Benchmark questions: what kind of answer each asks for, what a generation says, and whether that is right.

What no rule of proxykd/evaluation/readings.py can read is no answer: it counts as wrong, and its share is reported
beside the score.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from proxykd.evaluation.numbers import value_of
from proxykd.evaluation.readings import answer_part, canonical, read_letter, read_number, read_text, read_word

Kind = Literal["letter", "number", "word", "text"]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
WORDS = ({"true", "false"}, {"yes", "no"}, {"valid", "invalid"})
INSTRUCTIONS: dict[Kind, str] = {
    "letter": "Answer with the letter of the right option alone.",
    "number": 'Work it out step by step, then end with "The answer is N", N being a number.',
    "word": "Answer with {words} alone.",
    "text": 'End with "The answer is" and the answer itself.',
}
MAX_TOKENS: dict[Kind, int] = {"letter": 32, "number": 320, "word": 32, "text": 160}


@dataclass(frozen=True)
class Question:
    """One benchmark record: `choices` are lettered A, B, ...; where they are None, options may stand in the text."""

    id: str
    question: str
    choices: tuple[str, ...] | None
    answer: str

    @property
    def subtask(self) -> str:
        """The parts of the id between the benchmark's name and the record's own, a split's name left out."""
        return "/".join(part for part in self.id.split("/")[1:-1] if part not in ("test", "validation"))

    @property
    def options(self) -> dict[str, str]:
        """Letter to text, from `choices` or from lines such as "(A) text" in the question."""
        if self.choices is not None:
            return dict(zip(LETTERS, self.choices, strict=False))
        return dict(re.findall(r"^\(([A-Z])\)\s*(.*?)\s*$", self.question, re.MULTILINE))

    @property
    def kind(self) -> Kind:
        if self.choices is not None or re.fullmatch(r"\([A-Z]\)", self.answer):
            return "letter"
        if self.words:
            return "word"
        return "number" if re.fullmatch(r"-?[\d,]*\.?\d+", self.answer) else "text"

    @property
    def prompt(self) -> str:
        """The question as it is asked, without an example: its lettered choices and how to answer."""
        lines = [self.question.strip()]
        if self.choices is not None:
            lines.append("\n".join(f"{letter}. {text}" for letter, text in self.options.items()))
        words = " or ".join(sorted((word.capitalize() for word in self.words), reverse=True))
        return "\n\n".join([*lines, INSTRUCTIONS[self.kind].format(words=words)])

    def extract(self, generation: str) -> str | None:
        """The answer that a generation gives, in the form of `answer`; None where it gives none."""
        text = answer_part(generation)
        if not text:
            return None
        match self.kind:
            case "letter":
                return read_letter(text, self.options)
            case "number":
                return read_number(text)
            case "word":
                return read_word(text, self.words)
            case "text":
                return read_text(text)

    def right(self, extracted: str | None) -> bool:
        if extracted is None:
            return False
        if self.kind == "letter":
            return extracted == self.answer.strip("()")
        value = value_of(self.answer)
        if self.kind == "number" or value is not None:
            return value is not None and value_of(extracted) == value
        return canonical(extracted) == canonical(self.answer)

    @property
    def words(self) -> set[str]:
        """The words of which one is asked for, where it is such a question."""
        return next((words for words in WORDS if self.answer.lower() in words), set())
