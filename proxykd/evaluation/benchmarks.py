"""Benchmarks, the six and one's own: where their questions are, and what a set of graded generations adds up to."""

from __future__ import annotations

import operator
import random
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from proxykd.errors import BenchmarkError
from proxykd.evaluation.answers import LETTERS, Question
from proxykd.evaluation.standard_errors import ratio_of_sums
from proxykd.runs.json_model import JsonModel
from proxykd.text.corpus import normalised_prompt
from proxykd.text.sources import BadRow, is_blank, rows_of

TASKS = ("bbh", "agieval", "arc_challenge", "csqa", "gsm8k", "mmlu")
"""Those that the hub gives."""
AVERAGE = "average"
"""In reports, the mean over tasks."""
TASK_FILE = re.compile(r"(?P<task>.+?)(_sample)?\.jsonl(\.gz)?")


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


def parse_tasks(names: str, data_dir: Path | None) -> list[str]:
    """Comma-separated names, in the order given, each once: of files in `data_dir`, or else of the hub's benchmarks.

    Raises:
        BenchmarkError: a name that is none of these, or that the reports need for themselves.
    """
    tasks = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    known = TASKS if data_dir is None else tasks_in(data_dir)
    unknown = [name for name in tasks if name not in known]
    if AVERAGE in tasks and AVERAGE in known:
        raise BenchmarkError(f"--tasks {names!r}: reports call the mean of all tasks {AVERAGE!r}; rename the file")
    if unknown or not tasks:
        said = f"--tasks {names!r}: {unknown or 'nothing'} is no benchmark"
        if data_dir is None:
            raise BenchmarkError(
                f"{said}; known: {','.join(TASKS)}; questions of your own: NAME.jsonl in a folder, --data-dir FOLDER"
            )
        raise BenchmarkError(
            f"{said} in {data_dir}; there: {','.join(known) or 'no .jsonl or .jsonl.gz'}; a line is "
            '{"id", "question", "choices": [..] or null, "answer"}. Without --data-dir the hub gives '
            f"{','.join(TASKS)}"
        )
    return tasks


def tasks_in(data_dir: Path) -> list[str]:
    """The names of the tasks whose records are in a folder, sorted; none where there is no folder."""
    named = (TASK_FILE.fullmatch(path.name) for path in data_dir.glob("*.jsonl*"))
    return sorted({found["task"] for found in named if found})


def read_questions(task: str, data_dir: Path) -> list[Question]:
    """The records of a task of `tasks_in`: <task>.jsonl, .jsonl.gz, or <task>_sample.* where only a sample is there.

    Raises:
        BenchmarkError: a line that is no record, or none at all.
    """
    names = [f"{task}{part}.jsonl{suffix}" for part in ("", "_sample") for suffix in ("", ".gz")]
    path = next(data_dir / name for name in names if (data_dir / name).exists())
    found = question_file(path)
    if not found:
        raise BenchmarkError(f"{path} has no questions")
    return found


def question_file(path: Path) -> list[Question]:
    """The records of a file, a line of JSON each, in any form that proxykd/text/sources.py reads.

    Raises:
        BenchmarkError: a line that is no record.
        CorpusError: the file cannot be read.
    """
    rows = ((where, row) for where, row in rows_of(path, "benchmark") if not is_blank(row))
    return [_question(row, f"{path} {where}") for where, row in rows]


def graded(question: Question, prompt: str, generation: str) -> Grade:
    """The generation with the answer that is read from it."""
    read = question.extract(generation)
    return Grade(question.id, question.subtask, prompt, generation, question.answer, read, question.right(read))


def _question(row: Any, where: str) -> Question:
    if isinstance(row, BadRow):
        raise BenchmarkError(f"{where} is no benchmark record ({row})")
    try:
        choices = row["choices"]
        if not isinstance(row["question"], str):
            raise TypeError(f"question {row['question']} is no text")
        if not isinstance(choices, list | None):
            raise TypeError(f"choices {choices} is no list")
        choices = None if choices is None else tuple(map(str, choices))
        question = Question(str(row["id"]), row["question"], choices, str(row["answer"]))
    except (ValueError, KeyError, TypeError) as error:
        raise BenchmarkError(f"{where} is no benchmark record ({type(error).__name__}: {error})") from None
    if choices is not None and question.answer not in list(LETTERS[: len(choices)]):
        raise BenchmarkError(f"{where}: answer {question.answer!r} is no letter of its {len(choices)} choices")
    if row["answer"] is None or not question.answer.strip():
        raise BenchmarkError(
            f"{where}: answer {row['answer']!r} is none, so that nothing would be right; remove the line"
        )
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
