"""What share of tests/generations.py is read rightly: by our rules, by lm-evaluation-harness' filters, by math-verify.

    python -m benchmarks.answers [DATA]

DATA, where it is given, holds text of others whose form tells its answer: bench/gsm8k_train.jsonl.gz, where it stands
behind ####, and teacher/teacher_mmlupro_gemini15.jsonl.gz, which ends with "The answer is (X)".

math-verify is no dependency: it is asked where it is installed ("math-verify[antlr4_13_2]" of PyPI). It is for numbers
and LaTeX alone, and is asked by value; the harness' filters are those of its zero-shot BBH and of GSM8K (flexible).
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from proxykd.evaluation.answers import Question
from proxykd.evaluation.numbers import value_of
from tests.generations import GENERATIONS, Judged

Judge = Callable[[Judged], bool]
KINDS = ("letter", "number", "word", "latex", "algebra")


def ours(judged: Judged) -> bool:
    return _agrees(judged, judged.question.extract(judged.generation))


def harness(judged: Judged) -> bool:
    from lm_eval.filters.extraction import MultiChoiceRegexFilter, RegexFilter

    question = judged.question
    if judged.kind == "letter":
        found = MultiChoiceRegexFilter(r"(\([A-Z]\))", 0, "", ignore_case=True, ignore_punctuation=True)
        listed = "\n".join(f"({letter}) {text}" for letter, text in question.options.items())
        doc = {"input": f"{question.question}\nOptions:\n{listed}", "choices": list(question.choices or ())}
    else:
        number = RegexFilter(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", -1, "")
        words = RegexFilter(rf"\b({'|'.join(word for word in question.words)})\b", 0, "")
        found, doc = number if judged.kind == "number" else words, {}
    text = judged.generation if judged.kind != "word" else judged.generation.lower()
    [[said]] = found.apply([[text]], [doc])
    return _agrees(judged, re.sub(r"[$()]|\.$", "", said) or None)


def math_verify(judged: Judged) -> bool:
    from math_verify import parse, verify

    gold = judged.reading or judged.question.answer
    said = parse(judged.generation)
    if judged.kind == "number" and judged.reading is None:
        return not said
    return bool(verify(parse(f"${gold}$"), said)) == (judged.reading is not None)


def _agrees(judged: Judged, found: str | None) -> bool:
    """Whether what was read is the right reading. Of LaTeX any other reading is a wrong answer."""
    if judged.kind in ("latex", "algebra"):
        return judged.question.right(found) == (judged.reading is not None)
    if judged.reading is None or found is None:
        return found == judged.reading
    if judged.kind == "number":
        return value_of(found) == value_of(judged.reading)
    return replace(judged.question, answer=judged.reading).right(found)


def solutions(data: Path) -> Iterator[tuple[Question, str]]:
    """GSM8K's own solutions, each with its question."""
    for row in _rows(data / "bench" / "gsm8k_train.jsonl.gz"):
        yield Question(row["id"], row["question"], None, row["answer"]), row["solution"]


def letters(data: Path) -> Iterator[tuple[Question, str]]:
    """Gemini's answers to MMLU-Pro, with the letter that they end with in the answer's place."""
    for row in _rows(data / "teacher" / "teacher_mmlupro_gemini15.jsonl.gz"):
        options = tuple(re.findall(r"^[A-J]\. (.*)$", row["prompt"], re.MULTILINE))
        said = re.findall(r"[Aa]nswer is \(([A-J])\)", row["response"])
        if said:
            yield Question("gemini", row["prompt"], options, said[-1]), row["response"]


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


def read_others(data: Path) -> None:
    for name, texts in (("GSM8K's solutions", solutions(data)), ("Gemini's answers to MMLU-Pro", letters(data))):
        verdicts = [question.right(question.extract(text)) for question, text in texts]
        print(f"{name}: {sum(verdicts):,} of {len(verdicts):,} read as their form says")


def main() -> None:
    judges: dict[str, tuple[Judge, Any]] = {"ours": (ours, KINDS), "harness": (harness, KINDS[:3])}
    if importlib.util.find_spec("math_verify") is not None:
        judges["math-verify"] = (math_verify, ("number", "latex", "algebra"))
    table = Table("kind", "generations", *judges)
    wrong: list[str] = []
    for kind in KINDS:
        mine = [one for one in GENERATIONS if one.kind == kind]
        shares = []
        for name, (judge, kinds) in judges.items():
            verdicts = [judge(one) for one in mine] if kind in kinds else []
            shares.append(f"{sum(verdicts) / len(verdicts):.1%}" if verdicts else "")
            wrong += [f"{name}: {one.generation!r}" for one, right in zip(mine, verdicts, strict=False) if not right]
        table.add_row(kind, str(len(mine)), *shares)
    Console().print(table)
    print("\n".join(wrong))
    for data in sys.argv[1:]:
        read_others(Path(data))


if __name__ == "__main__":
    main()
