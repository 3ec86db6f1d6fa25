"""`proxykd evaluate`: benchmark scores of a model, or of a run's proxy and student, with every generation kept."""

from __future__ import annotations

import json
import multiprocessing
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from proxykd.answers import Question
from proxykd.benchmarks import Grade, read_questions, subset, summarise
from proxykd.errors import BenchmarkError
from proxykd.harness import Answerer, hub_questions, opened
from proxykd.models import merge_adapter, resolve
from proxykd.storage import RunDirectory, fetch, read_json, write_atomic, write_json

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
    """Evaluates MODEL, or a RUN's proxy and student, and prints the table. What an earlier attempt answered stands.

    Raises:
        BenchmarkError: a task's data is absent, or `output` holds another evaluation.
        TemplateError: a model without a chat template, where none is named.
    """
    questions = {task: _questions(task, settings) for task in settings.tasks}
    run = RunDirectory.open(source) if (Path(source) / "journal").is_dir() or "://" in source else None
    with _answerers(source, run, settings) as answerers:
        for answerer in answerers.values():
            answerer.require_chat_template()
        folder = Path(output or (run.root / "benchmarks" if run else Path("evaluations") / Path(source).name))
        _claim(folder, source, settings)
        results = {name: _evaluate(a, name, questions, folder) for name, a in answerers.items()}
    write_json(folder / "results.json", {"model": source, **asdict(settings), "results": results})
    if run is not None and run.report.exists():
        report = read_json(run.report)
        for name, scores in results.items():
            report["benchmarks"].setdefault(name, {}).update(scores)
        write_json(run.report, report)
    _show(results, folder)


def _questions(task: str, settings: Settings) -> list[Question]:
    found = read_questions(task, Path(settings.data_dir)) if settings.data_dir else hub_questions(task)
    return subset(found, settings.limit, settings.seed)


@contextmanager
def _answerers(source: str, run: RunDirectory | None, settings: Settings) -> Iterator[dict[str, Answerer]]:
    """By name: the model itself, or a finished run's aligned proxy, merged for the occasion, and its student."""
    import torch

    plain = Answerer(
        model=source,
        backend=settings.backend,
        dtype=settings.dtype or "auto",
        device="gpu" if torch.cuda.is_available() else "cpu",
        max_length=settings.max_length,
        chat_template=settings.chat_template,
    )
    if run is None:
        path = resolve(source)
        yield {path.name: replace(plain, model=str(path))}
        return
    if not (run.stages / "distil.json").exists():
        raise BenchmarkError(f"{run.id} has no student yet; go on with: proxykd resume {source}")
    config, aligned = run.config(), read_json(run.stages / "score.json")["result"]["adapter"]
    with tempfile.TemporaryDirectory() as scratch:
        proxy = merge_adapter(run.models / "proxy", run.adapters / aligned, Path(scratch) / "proxy", config.proxy.dtype)
        yield {
            "proxy": replace(plain, model=str(proxy), dtype=settings.dtype or config.proxy.dtype),
            "student": replace(plain, model=str(fetch(run.student)), dtype=settings.dtype or config.student.dtype),
        }


def _claim(folder: Path, source: str, settings: Settings) -> None:
    """The folder is this evaluation's, from now on or already."""
    mine = json.loads(json.dumps({"model": source, **asdict(settings)} | {"tasks": None}))
    path = folder / "settings.json"
    if not path.exists():
        write_json(path, mine)
    elif (theirs := read_json(path)) != mine:
        differ = {key: theirs.get(key) for key, value in mine.items() if theirs.get(key) != value}
        raise BenchmarkError(f"{folder} holds an evaluation with {differ}; name another folder with --output")


def _evaluate(answerer: Answerer, name: str, questions: dict[str, list[Question]], folder: Path) -> dict[str, Any]:
    """Every task's summary, from the kept generations.

    What is missing is asked in a process of its own, so that nothing of the model is left when the next one comes.
    """
    missing = {task: chunks for task, some in questions.items() if (chunks := _missing(folder / name / task, some))}
    if missing:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            pool.submit(_answer, answerer, name, missing, folder).result()
    return {task: summarise(list(_kept(folder / name / task, some))) for task, some in questions.items()}


def _chunks(folder: Path, questions: list[Question]) -> dict[Path, list[Question]]:
    return {folder / f"{at:06d}.jsonl": questions[at : at + CHUNK] for at in range(0, len(questions), CHUNK)}


def _missing(folder: Path, questions: list[Question]) -> dict[Path, list[Question]]:
    return {path: chunk for path, chunk in _chunks(folder, questions).items() if not path.exists()}


def _kept(folder: Path, questions: list[Question]) -> Iterator[Grade]:
    for path, chunk in _chunks(folder, questions).items():
        grades = [Grade(**json.loads(line)) for line in path.read_text().splitlines()]
        if [grade.id for grade in grades] != [question.id for question in chunk]:
            raise BenchmarkError(f"{path} answers other questions; delete {folder} and evaluate again")
        yield from grades


def _answer(answerer: Answerer, name: str, missing: dict[str, dict[Path, list[Question]]], folder: Path) -> None:
    console = Console(highlight=False)
    with opened(answerer) as ask:
        for task, chunks in missing.items():
            total, done = sum(map(len, chunks.values())), 0
            for path, chunk in chunks.items():
                lines = [json.dumps(asdict(grade), ensure_ascii=False) + "\n" for grade in ask(chunk)]
                write_atomic(path, "".join(lines).encode())
                done += len(chunk)
                console.print(f"  {name}  {task}  {done} of {total} questions")


def _show(results: dict[str, dict[str, Any]], folder: Path) -> None:
    table = Table(title="share of right answers, zero-shot, greedy", title_justify="left")
    table.add_column("task")
    for name in results:
        table.add_column(name, justify="right")
    tasks = list(next(iter(results.values())))
    for task in tasks:
        table.add_row(task, *(_cell(scores[task]) for scores in results.values()))
    console = Console(highlight=False)
    console.print(table)
    console.print(f"every generation: {folder}")


def _cell(score: dict[str, Any]) -> str:
    stderr = "" if score["stderr"] is None else f" ± {score['stderr']:.3f}"
    unread = f", {score['unanswered']:.0%} without an answer" if score["unanswered"] else ""
    return f"{score['score']:.3f}{stderr} ({score['n']}{unread})"
