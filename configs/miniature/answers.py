"""A world where an answer is right or wrong: sums worked out in words, three small models, prompts, held-out questions.

    python configs/miniature/answers.py [FOLDER] [--seeds 0 1 2 3 4 5 6]

A question asks for a sum or a difference. An answer works through the digits from the right and ends with the number.
At each place of its text a voice chooses words by tables of its own, and it slips: in each column by its own chance,
and goes on from there, so that the text is consistent and its answer wrong. The teacher slips seldom. Proxy and
student have heard four other voices, which slip more often, and two of which name the number without working it out.

FOLDER is runs/answers if it is not named. It gets the models; questions/sums.jsonl, held-out questions for `proxykd
evaluate`, which no model has read and no prompt asks; and for each seed prompts of its own, prompts-SEED.jsonl: what a
study that names {seed} in corpus.prompts takes.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from small_models import Shape, make_tokenizer, train, weights

from proxykd.evaluation.answers import Question

DIGITS = 2
PROMPTS, HELD_OUT = 1000, 500
FORMS = {
    "plus": ("what is {a} plus {b} ?", "how much are {a} and {b} together ?", "add {b} to {a} ."),
    "minus": ("what is {a} minus {b} ?", "how much is left of {a} without {b} ?", "take {b} from {a} ."),
}
WORDS = {
    "opening": ("from the right :", "digit by digit :", "first the ones :", "let us see :"),
    "plus": ("and", "plus", "with", "added to"),
    "minus": ("less", "minus", "without", "lowered by"),
    "verb": ("is", "makes", "gives", "leaves"),
    "carry": ("carry", "keep", "move", "and"),
    "close": ("the answer is", "so the answer is", "then the answer is", "well , the answer is"),
}
PIECES = r"\n\n.*| ?\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s"
"""Of a text: digits one by one, words, and as a whole the instruction that evaluations end a question with."""


@dataclass(frozen=True)
class Sum:
    """A question: `a` is not smaller than `b` where one is taken from the other."""

    kind: str
    form: int
    a: int
    b: int

    @property
    def answer(self) -> int:
        return self.a + self.b if self.kind == "plus" else self.a - self.b

    @property
    def key(self) -> tuple[str, int, int]:
        """What it asks for, whatever its words and the order of its numbers."""
        return self.kind, min(self.a, self.b), max(self.a, self.b)

    @property
    def columns(self) -> list[tuple[int, int]]:
        """The digits of both numbers, the ones first."""
        width = len(str(max(self.a, self.b)))
        return [(self.a // 10**column % 10, self.b // 10**column % 10) for column in range(width)]

    def asked(self, number: int = 0) -> Question:
        """As an evaluation asks it; so does every prompt, and what the models have read."""
        text = FORMS[self.kind][self.form].format(a=self.a, b=self.b)
        return Question(f"sums/{self.kind}/{number}", text, None, str(self.answer))


@dataclass(frozen=True)
class Voice:
    """How one answers: in words by the tables of its name."""

    name: str
    slips: float
    """The share of columns that it gets wrong by 1."""
    works: bool = True
    """Whether it works the number out, or names it at once, with its slips all the same."""

    def says(self, question: Sum, chance: random.Random) -> str:
        def word(place: str, *context: str) -> str:
            options = WORDS[place]
            return chance.choices(options, weights(self.name, place, context, len(options)))[0]

        kind, form = question.kind, str(question.form)
        said, digits, carried = [word("opening", kind, form)], [], 0
        for x, y in question.columns:
            more = 10 if kind == "minus" and x < y + carried else 0
            joint = word(kind, str(carried))
            parts = [x + more, y, *([1] if carried else [])]
            value = x + y + carried if kind == "plus" else x + more - y - carried
            if chance.random() < self.slips:
                value = chance.choice([v for v in (value - 1, value + 1) if 0 <= v <= (19 if kind == "plus" else 9)])
            digits.append(value % 10)
            carried = 1 if more or value > 9 else 0
            note = f" {word('carry', joint)} 1" if carried else ""
            said.append(f"{f' {joint} '.join(map(str, parts))} {word('verb', joint)} {value}{note} ;")
        digits.append(carried if kind == "plus" else 0)
        found = sum(digit * 10**column for column, digit in enumerate(digits))
        close = f"{word('close', kind, form)} {found} ."
        return " ".join([*said, close]) if self.works else close


def draw(chance: random.Random) -> Sum:
    """Any question but those held out, whichever words they are asked in."""
    while (found := draw_any(chance)).key in held_out():
        pass
    return found


def draw_any(chance: random.Random) -> Sum:
    kind = chance.choice(list(FORMS))
    a, b = (chance.randint(10, 10**DIGITS - 1) for _ in range(2))
    a, b = (max(a, b), min(a, b)) if kind == "minus" else (a, b)
    return Sum(kind, chance.randrange(len(FORMS[kind])), a, b)


@cache
def held_out() -> dict[tuple[str, int, int], Sum]:
    """By what they ask for, in a fixed order."""
    chance, found = random.Random("held out"), {}
    while len(found) < HELD_OUT:
        one = draw_any(chance)
        found.setdefault(one.key, one)
    return found


@dataclass(frozen=True)
class Recipe:
    """A model's shape, and whom it has heard, one voice at a time."""

    shape: Shape
    voices: tuple[Voice, ...]

    def batch(self, chance: random.Random, size: int) -> list[tuple[str, str]]:
        asked = [draw(chance) for _ in range(size)]
        return [(one.asked().prompt, chance.choice(self.voices).says(one, chance)) for one in asked]


TEACHER = Voice("sums teacher", 0.03)
WEB = (Voice("sums web0", 0.1), Voice("sums web1", 0.1), Voice("sums web2", 0.1, False), Voice("sums web3", 0.1, False))
MODELS = {
    "teacher": Recipe(Shape(3, 128, 800), (TEACHER,)),
    "proxy": Recipe(Shape(2, 96, 600), WEB),
    "student": Recipe(Shape(2, 64, 400), WEB),
}


def write_prompts(path: Path, chance: random.Random) -> None:
    """Different questions, none of them held out."""
    asked: dict[Sum, None] = {}
    while len(asked) < PROMPTS:
        asked[draw(chance)] = None
    rows = [{"id": f"p{number:05d}", "prompt": one.asked().prompt} for number, one in enumerate(asked)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_questions(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    asked = [one.asked(number) for number, one in enumerate(held_out().values())]
    path.write_text("".join(json.dumps(asdict(question)) + "\n" for question in asked))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs/answers"))
    parser.add_argument("--seeds", type=int, nargs="*", default=range(7))
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    write_questions(args.folder / "questions" / "sums.jsonl")
    for seed in args.seeds:
        write_prompts(args.folder / f"prompts-{seed}.jsonl", random.Random(f"prompts {seed}"))
    heard = MODELS["student"].batch(random.Random(1), 2000)
    tokenizer = make_tokenizer([f"{prompt} {text}" for prompt, text in heard], PIECES)
    for name, recipe in MODELS.items():
        if not (args.folder / name / "config.json").exists():
            train(name, recipe.shape, recipe.batch, tokenizer, args.folder)
    print(f"models, prompts and questions in {args.folder}")


if __name__ == "__main__":
    main()
