"""Benchmark questions: what kind of answer each asks for, what a generation says, and whether that is right.

A generation is read by rules, most explicit first, and by nothing else; docs/evaluate.md lists them. What no rule can
read is no answer: it counts as wrong, and its share is reported beside the score.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

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

CUE = re.compile(
    r"(?:answer|option|choice|conclusion)\s*(?:(?:is|are|would be|should be|must be)\s*:?|[:=])", re.IGNORECASE
)
BOXED = re.compile(r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}")
THINKING = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
NUMBER = re.compile(r"(?<![\w.])-?\$?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d))(?:/\d+)?")
MARKUP = re.compile(r"\*\*|__|`|\\text\{([^{}]*)\}|\\mathrm\{([^{}]*)\}")


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
        text = MARKUP.sub(lambda found: found[1] or found[2] or "", THINKING.sub("", generation)).strip()
        return READERS[self.kind](self, text) if text else None

    def right(self, extracted: str | None) -> bool:
        if extracted is None:
            return False
        if self.kind == "letter":
            return extracted == self.answer.strip("()")
        if self.kind == "number":
            return _value(extracted) == _value(self.answer)
        return _canonical(extracted) == _canonical(self.answer)

    @property
    def words(self) -> set[str]:
        """The words of which one is asked for, where it is such a question."""
        return next((words for words in WORDS if self.answer.lower() in words), set())


def _letter(question: Question, text: str) -> str | None:
    options = question.options

    def stated(piece: str) -> str | None:
        piece = piece.lstrip(" :\"'$")
        named = [letter for letter, option in options.items() if option and _starts_with(piece, option)]
        if len(named) == 1:
            return named[0]
        found = re.match(r"(?i:option |choice )?(?:\(([A-Za-z])\)|([A-Z])(?![\w']))", piece)
        letter = (found[1] or found[2]).upper() if found else None
        return letter if letter in options else None

    def alone(line: str) -> str | None:
        found = re.match(r"\(?([A-Z])(?:[).:,]+(?:\s|$)|$)", line.strip())
        one = len(set(re.findall(r"\(([A-Z])\)", line))) <= 1
        return found[1] if found and one and found[1] in options else None

    mentioned = {letter for letter in re.findall(r"\(([A-Z])\)", text) if letter in options}
    quoted = [letter for letter, option in options.items() if option and _canonical(option) in _canonical(text)]
    return (
        _last(stated, _after_cues(text))
        or _last(stated, BOXED.findall(text))
        or _last(alone, [*text.splitlines(), text.splitlines()[0]])
        or (mentioned.pop() if len(mentioned) == 1 else None)
        or (quoted[0] if len(quoted) == 1 else None)
    )


def _number(_: Question, text: str) -> str | None:
    def last(piece: str) -> str | None:
        return next((found.replace("$", "") for found in reversed(NUMBER.findall(piece)) if found.strip("-$")), None)

    def stated(piece: str) -> str | None:
        result = piece.rpartition("=")[2]
        return next((found.replace("$", "") for found in NUMBER.findall(result) if found.strip("-$")), None)

    return (
        _last(stated, re.findall(r"####\s*(.*)", text))
        or _last(stated, BOXED.findall(text))
        or _last(stated, _after_cues(text))
        or last(text)
    )


def _word(question: Question, text: str) -> str | None:
    def stated(piece: str) -> str | None:
        found = re.match(r"\W*(\w+)", piece)
        return found[1].lower() if found and found[1].lower() in question.words else None

    mentioned = {word for word in re.findall(r"\w+", text.lower()) if word in question.words}
    return (
        _last(stated, [*BOXED.findall(text), *_after_cues(text)])
        or stated(text)
        or (mentioned.pop() if len(mentioned) == 1 else None)
    )


def _text(_: Question, text: str) -> str | None:
    def stated(piece: str) -> str | None:
        return piece.strip().strip("\"'").removesuffix(".").strip() or None

    return _last(stated, BOXED.findall(text)) or _last(stated, _after_cues(text)) or _last(stated, text.splitlines())


READERS: dict[Kind, Callable[[Question, str], str | None]] = {
    "letter": _letter,
    "number": _number,
    "word": _word,
    "text": _text,
}


def _after_cues(text: str) -> list[str]:
    """What follows each "the answer is", up to the line's end or the next cue."""
    return [piece for line in text.splitlines() for piece in CUE.split(line)[1:]]


def _last(read: Callable[[str], str | None], pieces: list[str]) -> str | None:
    """The last piece that can be read: models restate and then conclude."""
    return next((found for piece in reversed(pieces) if (found := read(piece))), None)


def _starts_with(piece: str, option: str) -> bool:
    found, wanted = _canonical(piece), _canonical(option)
    return found == wanted or (found.startswith(wanted) and len(wanted) > 2)


def _canonical(text: str) -> str:
    """Text as it is compared: without case, spaces, commas, dollar signs, LaTeX's spacing and a final full stop."""
    text = re.sub(r"\\left|\\right|\\[!,;: ]|[$,\s]|\.$", "", text.strip().casefold())
    return re.sub(r"\\[dt]frac", r"\\frac", text)


def _value(number: str) -> Fraction | None:
    try:
        return Fraction(number.replace(",", "").strip())
    except (ValueError, ZeroDivisionError):
        return None
