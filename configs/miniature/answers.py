"""A world where an answer is right or wrong: sums worked out in words, three small models, prompts, held-out questions.

    python configs/miniature/answers.py [FOLDER] [--seeds 0 1 2 3 4 5 6]

A question asks for a sum. An answer works through the digits from the right, carrying, and ends with the number.
At each place of its text a voice chooses words by tables of its own, and it slips: in each column by its own chance,
and goes on from there, so that the text is consistent and its answer wrong. The teacher slips seldom. Proxy and
student have heard four other voices, which slip more often, and one of which names the number without working it out.

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
FORMS = ("what is {a} plus {b} ?", "how much are {a} and {b} ?", "add {b} to {a} .")
WORDS = {
    "opening": ("sure :", "ones first :", "look :", "let me see :"),
    "joint": ("and", "plus", "with", "+"),
    "verb": ("is", "makes", "gives", "="),
    "carry": ("carry", "keep", "move", "and"),
    "close": ("the answer is", "so the answer is", "then the answer is", "answer :"),
}
PIECES = r"\n\n.*| ?\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s"
"""Of a text: digits one by one, words, and as a whole the instruction that evaluations end a question with."""


@dataclass(frozen=True)
class Sum:
    """A question, and in which words it is asked."""

    form: int
    a: int
    b: int

    @property
    def answer(self) -> int:
        return self.a + self.b

    @property
    def numbers(self) -> tuple[int, int]:
        """What it asks for, whatever its words and the order of its numbers."""
        return min(self.a, self.b), max(self.a, self.b)

    @property
    def columns(self) -> list[tuple[int, int]]:
        """The digits of both numbers, the ones first."""
        width = len(str(max(self.a, self.b)))
        return [(self.a // 10**column % 10, self.b // 10**column % 10) for column in range(width)]

    def asked(self, number: int = 0) -> Question:
        """As an evaluation asks it; so does every prompt, and what the models have read."""
        text = FORMS[self.form].format(a=self.a, b=self.b)
        return Question(f"sums/{number}", text, None, str(self.answer))


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

        form = str(question.form)
        said, digits, carried = [word("opening", form)], [], 0
        for x, y in question.columns:
            joint = word("joint", str(carried))
            parts = [x, y, 1] if carried else [x, y]
            value = sum(parts)
            if chance.random() < self.slips:
                value = chance.choice([v for v in (value - 1, value + 1) if 0 <= v <= 19])
            digits.append(value % 10)
            carried = value // 10
            note = f" {word('carry', joint)} 1" if carried else ""
            said.append(f"{f' {joint} '.join(map(str, parts))} {word('verb', joint)} {value}{note} ;")
        found = sum(digit * 10**column for column, digit in enumerate([*digits, carried]))
        close = f"{word('close', form)} {found} ."
        return " ".join([*said, close]) if self.works else close


def draw(chance: random.Random) -> Sum:
    """Any question but those held out, whichever words they are asked in."""
    while (found := draw_any(chance)).numbers in held_out():
        pass
    return found


def draw_any(chance: random.Random) -> Sum:
    return Sum(chance.randrange(len(FORMS)), *(chance.randint(10, 10**DIGITS - 1) for _ in range(2)))


@cache
def held_out() -> dict[tuple[int, int], Sum]:
    """By their numbers, in a fixed order."""
    chance, found = random.Random("held out"), {}
    while len(found) < HELD_OUT:
        one = draw_any(chance)
        found.setdefault(one.numbers, one)
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
WEB = (*(Voice(f"sums web{i}", 0.1) for i in range(3)), Voice("sums web3", 0.1, works=False))
MODELS = {
    "teacher": Recipe(Shape(2, 128, 1000), (TEACHER,)),
    "proxy": Recipe(Shape(2, 96, 500), WEB),
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
