"""`proxykd evaluate`: benchmark scores of a model, or of a run's proxy and student, with every generation kept."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from proxykd.errors import BenchmarkError
from proxykd.evaluation.answers import Question
from proxykd.evaluation.benchmarks import Grade, TaskScore, graded, read_questions, subset, summarise
from proxykd.evaluation.harness import Answerer, hub_questions, opened
from proxykd.report.model_card import write_cards
from proxykd.report.report_model import read_report
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import read_json, write_atomic, write_json
from proxykd.study.studies import StudyDirectory
from proxykd.study.study_page import write_study_report
from services.cli.formatting import figure_table, with_error
from services.cli.subjects import Subject, of_model, of_run, of_study

Scores = dict[str, TaskScore]
"""A model's, by task."""
CHUNK = 256
"""Questions between two writes of what is answered: what a death costs at most."""


@dataclass(frozen=True)
class Settings:
    """What an evaluation's numbers depend on besides the model."""

    tasks: tuple[str, ...]
    data_dir: str | None
    limit: int | None
    seed: int
    backend: str
    dtype: str | None
    max_length: int
    chat_template: str | None


def evaluate(source: str, settings: Settings, output: str | None) -> None:
    """Evaluates a model, or those of a run or a study, and prints the table. What an earlier attempt answered stands.

    Raises:
        BenchmarkError: a task's data is absent, a run has no student yet, or `output` holds another evaluation.
        TemplateError: a model without a chat template, where none is named.
    """
    questions = {task: _questions(task, settings) for task in settings.tasks}
    study = StudyDirectory(source) if StudyDirectory.is_one(source) else None
    is_run = study is None and ((Path(source) / "journal").is_dir() or "://" in source)
    run = RunDirectory.open(source) if is_run else None
    subjects = _subjects(source, study, run, settings)
    for subject in subjects:
        subject.answerer.require_chat_template()
    owner = study.root if study else run.root if run else None
    folder = Path(output or (owner / "benchmarks" if owner else Path("evaluations") / Path(source).name))
    _claim(folder, source, settings)
    results = {subject.name: _evaluate(subject, questions, folder) for subject in subjects}
    by_model = {name: {task: score.model_dump() for task, score in scores.items()} for name, scores in results.items()}
    write_json(folder / "results.json", {"model": source, **asdict(settings), "results": by_model})
    for subject in subjects:
        for owned, key in subject.reports:
            _enter(owned, key, results[subject.name])
    if study is not None and study.report.exists():
        write_study_report(study)
    _show(results, folder)


def _subjects(source: str, study: StudyDirectory | None, run: RunDirectory | None, settings: Settings) -> list[Subject]:
    import torch

    plain = Answerer(
        model=source,
        backend=settings.backend,
        dtype=settings.dtype or "auto",
        device="gpu" if torch.cuda.is_available() else "cpu",
        max_length=settings.max_length,
        chat_template=settings.chat_template,
    )
    if study is not None:
        return of_study(study, plain, settings.dtype)
    return of_model(source, plain) if run is None else of_run(run, plain, settings.dtype)


def _enter(run: RunDirectory, key: str, scores: Scores) -> None:
    """Into the run's report, where it has one already."""
    if run.report.exists():
        report = read_report(run)
        known = report.benchmarks | {key: report.benchmarks.get(key, {}) | scores}
        report = report.model_copy(update={"benchmarks": known})
        write_json(run.report, report.model_dump())
        write_cards(run, report)


def _questions(task: str, settings: Settings) -> list[Question]:
    found = read_questions(task, Path(settings.data_dir)) if settings.data_dir else hub_questions(task)
    return subset(found, settings.limit, settings.seed)


def _claim(folder: Path, source: str, settings: Settings) -> None:
    """The folder is this evaluation's, from now on or already."""
    mine = json.loads(json.dumps({"model": source, **asdict(settings)} | {"tasks": None}))
    path = folder / "settings.json"
    if not path.exists():
        write_json(path, mine)
    elif (theirs := read_json(path)) != mine:
        differ = {key: theirs.get(key) for key, value in mine.items() if theirs.get(key) != value}
        raise BenchmarkError(f"{folder} holds an evaluation with {differ}; name another folder with --output")


def _evaluate(subject: Subject, questions: dict[str, list[Question]], folder: Path) -> Scores:
    """Every task's summary, from the kept generations.

    What is missing is asked in a process of its own, so that nothing of the model is left when the next one comes.
    """
    own = folder / subject.name
    missing = {task: chunks for task, some in questions.items() if (chunks := _missing(own / task, some))}
    if missing:
        with subject.ready() as answerer, ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            pool.submit(_answer, answerer, subject.name, missing).result()
    return {task: summarise(list(_kept(own / task, some))) for task, some in questions.items()}


def _chunks(folder: Path, questions: list[Question]) -> dict[Path, list[Question]]:
    return {folder / f"{at:06d}.jsonl": questions[at : at + CHUNK] for at in range(0, len(questions), CHUNK)}


def _missing(folder: Path, questions: list[Question]) -> dict[Path, list[Question]]:
    return {path: chunk for path, chunk in _chunks(folder, questions).items() if not path.exists()}


def _kept(folder: Path, questions: list[Question]) -> Iterator[Grade]:
    """What was answered, read by the rules as they are now: earlier ones may have read it otherwise."""
    for path, chunk in _chunks(folder, questions).items():
        grades = [Grade(**json.loads(line)) for line in path.read_bytes().splitlines()]
        if [grade.id for grade in grades] != [question.id for question in chunk]:
            raise BenchmarkError(f"{path} answers other questions; delete {folder} and evaluate again")
        read = [graded(q, grade.prompt, grade.generation) for q, grade in zip(chunk, grades, strict=True)]
        if read != grades:
            write_atomic(path, _lines(read))
        yield from read


def _answer(answerer: Answerer, name: str, missing: dict[str, dict[Path, list[Question]]]) -> None:
    console = Console(highlight=False)
    with opened(answerer) as ask:
        for task, chunks in missing.items():
            total, done = sum(map(len, chunks.values())), 0
            for path, chunk in chunks.items():
                write_atomic(path, _lines(ask(chunk)))
                done += len(chunk)
                console.print(f"  {name}  {task}  {done} of {total} questions")


def _lines(grades: Iterable[Grade]) -> bytes:
    return "".join(json.dumps(asdict(grade), ensure_ascii=False) + "\n" for grade in grades).encode()


def _show(results: dict[str, Scores], folder: Path) -> None:
    table = figure_table("share of right answers, zero-shot, greedy", "model", *next(iter(results.values())))
    for name, scores in results.items():
        table.add_row(name, *map(_cell, scores.values()))
    console = Console(highlight=False)
    console.print(table)
    console.print(f"every generation: {folder}")


def _cell(score: TaskScore) -> str:
    unread = f", {score.unanswered:.0%} unread" if score.unanswered else ""
    return f"{with_error(score.score, score.stderr, digits=3)} ({score.n}{unread})"
