"""Files of questions, the six benchmarks among them, and what a set of graded generations adds up to."""

from __future__ import annotations

import gzip
import json
import operator
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from proxykd.errors import BenchmarkError
from proxykd.evaluation.answers import LETTERS, Question
from proxykd.evaluation.standard_errors import ratio_of_sums
from proxykd.runs.json_model import JsonModel
from proxykd.text.corpus import normalised_prompt

TASKS = ("bbh", "agieval", "arc_challenge", "csqa", "gsm8k", "mmlu")


@dataclass(frozen=True)
class Grade:
    """One generation, kept for inspection."""

    id: str
    subtask: str
    prompt: str
    generation: str
    answer: str
    extracted: str | None
    right: bool


def parse_tasks(names: str) -> list[str]:
    """Comma-separated names, in the order given, each once.

    Raises:
        BenchmarkError: a name that is no benchmark.
    """
    tasks = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    unknown = [name for name in tasks if name not in TASKS]
    if unknown or not tasks:
        raise BenchmarkError(f"--tasks {names!r}: {unknown or 'nothing'} is no benchmark; known: {','.join(TASKS)}")
    return tasks


def read_questions(task: str, data_dir: Path) -> list[Question]:
    """The records of `task` under `data_dir`: <task>.jsonl, .jsonl.gz, or <task>_sample.* where only a sample is there.

    Raises:
        BenchmarkError: no such file, or a line of it that is no record.
    """
    names = [f"{task}{part}.jsonl{suffix}" for part in ("", "_sample") for suffix in ("", ".gz")]
    path = next((data_dir / name for name in names if (data_dir / name).exists()), None)
    if path is None:
        raise BenchmarkError(
            f"task {task}: none of {', '.join(names)} is in {data_dir}; a line is "
            '{"id", "question", "choices": [..] or null, "answer"}, or leave out --data-dir to load it from the hub'
        )
    return question_file(path)


def question_file(path: Path) -> list[Question]:
    """The records of a file, a line of JSON each, gzipped where its name ends so.

    Raises:
        BenchmarkError: a line that is no record.
    """
    with path.open("rb") as plain, gzip.open(plain) if path.suffix == ".gz" else plain as file:
        return [_question(line, f"{path}:{number}") for number, line in enumerate(file, start=1) if line.strip()]


def graded(question: Question, prompt: str, generation: str) -> Grade:
    """The generation with the answer that is read from it."""
    read = question.extract(generation)
    return Grade(question.id, question.subtask, prompt, generation, question.answer, read, question.right(read))


def _question(line: bytes, where: str) -> Question:
    try:
        row = json.loads(line)
        choices = row["choices"]
        if not isinstance(row["question"], str):
            raise TypeError(f"question {row['question']} is no text")
        choices = None if choices is None else tuple(map(str, choices))
        question = Question(str(row["id"]), row["question"], choices, str(row["answer"]))
    except (ValueError, KeyError, TypeError) as error:
        raise BenchmarkError(f"{where} is no benchmark record ({type(error).__name__}: {error})") from None
    if question.choices is not None and question.answer not in LETTERS[: len(question.choices)]:
        raise BenchmarkError(f"{where}: answer {question.answer!r} is no letter of its {len(question.choices)} choices")
    return question


def subset(questions: list[Question], limit: int | None, seed: int) -> list[Question]:
    """Returns at most `limit` of them, drawn at random by `seed`, in their own order."""
    if limit is None or limit >= len(questions):
        return questions
    return [questions[i] for i in sorted(random.Random(seed).sample(range(len(questions)), limit))]


class Score(JsonModel):
    """Of `n` questions."""

    score: float
    """The share of right answers."""
    stderr: float | None
    """Of it; None where a single question says nothing about others."""
    n: int
    unanswered: float
    """The share without a readable answer."""


class TaskScore(Score):
    subtasks: dict[str, Score] = Field(default_factory=dict, exclude_if=operator.not_)
    """Absent where the task has none."""


def summarise(grades: Sequence[Grade]) -> TaskScore:
    """The score of a task, and of each of its subtasks.

    The standard error is that of a mean, sqrt(p (1 - p) / (n - 1)), questions of the same words being one cluster. The
    score counts every question once (the paper and lm-evaluation-harness alike), so large subtasks weigh more.
    """
    by_subtask: dict[str, list[Grade]] = defaultdict(list)
    for grade in grades:
        by_subtask[grade.subtask].append(grade)
    subtasks = {name: score_of(some) for name, some in sorted(by_subtask.items()) if name}
    return TaskScore(**score_of(grades).model_dump(), subtasks=subtasks)


def score_of(grades: Sequence[Grade]) -> Score:
    """The same of all of them together."""
    n = len(grades)
    prompts = [normalised_prompt(({"role": "user", "content": grade.prompt},)) for grade in grades]
    score, stderr = ratio_of_sums([float(grade.right) for grade in grades], [1] * n, prompts)
    return Score(score=score, stderr=stderr, n=n, unanswered=sum(grade.extracted is None for grade in grades) / n)
