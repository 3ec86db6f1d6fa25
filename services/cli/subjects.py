"""Who is asked in an evaluation: a model, a run's proxy and student, or those of all arms of a study."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from proxykd.errors import BenchmarkError
from proxykd.evaluation.harness import Answerer
from proxykd.models.loading import merge_adapter
from proxykd.models.model_sources import resolve
from proxykd.models.run_models import local_model
from proxykd.runs.adapter_names import BASE
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import READY, fetch
from proxykd.stages.assist import ASSIST
from proxykd.stages.on_policy import student_stage
from proxykd.stages.score import SCORE
from proxykd.study.studies import StudyDirectory

PROXY, STUDENT = "proxy", "student"
SFT, START = "sft", "base"
"""In certificates: the student beside the run's own by SFT on the same text, and the student's model as it began."""


@dataclass(frozen=True)
class Subject:
    """`name` is its folder. `reports` take its scores: of which runs, and under what key of their `benchmarks`."""

    name: str
    answerer: Answerer
    adapter: Path | None = None
    """To be merged into the answerer's model, for the occasion."""
    reports: tuple[tuple[RunDirectory, str], ...] = ()

    @property
    def adapter_name(self) -> str:
        return BASE if self.adapter is None else self.adapter.name

    @contextmanager
    def ready(self) -> Iterator[Answerer]:
        """The answerer with its adapter in place."""
        if self.adapter is None:
            yield self.answerer
            return
        with tempfile.TemporaryDirectory() as scratch:
            base = Path(self.answerer.model)
            merged = merge_adapter(base, self.adapter, Path(scratch) / "model", self.answerer.dtype)
            yield replace(self.answerer, model=str(merged))


def of_model(source: str, plain: Answerer) -> list[Subject]:
    path = resolve(source)
    return [Subject(path.name, replace(plain, model=str(path)))]


def of_run(run: RunDirectory, plain: Answerer, dtype: str | None) -> list[Subject]:
    """The student, its snapshots if the run kept any, and the proxy that it learned from, if there was one.

    Raises:
        BenchmarkError: no student yet.
    """
    config, found = run.config(), []
    if not student_stage(config).marker(run).exists():
        raise BenchmarkError(f"{run.id} has no student yet; go on with: proxykd resume {run.root}")
    if (source := _proxy(run)) is not None:
        answerer = replace(plain, model=str(local_model(run.models / "proxy")), dtype=dtype or config.proxy.dtype)
        adapter = run.adapters / source if source != BASE else None
        found.append(Subject(PROXY, answerer, adapter, ((run, PROXY),)))
    answerer = replace(plain, dtype=dtype or config.student.dtype)
    students = {STUDENT: run.student} | {f"{STUDENT}@{step}": path for step, path in run.snapshots().items()}
    return found + [
        Subject(name, replace(answerer, model=str(fetch(path))), None, ((run, name),))
        for name, path in students.items()
    ]


def of_certificate(run: RunDirectory, plain: Answerer, dtype: str | None) -> list[Subject]:
    """The student first, then what the run has beside it: the student by SFT, the proxy, the student's model as it
    began.

    Raises:
        BenchmarkError: no student yet.
    """
    found = {one.name: one for one in of_run(run, plain, dtype)}
    student = found[STUDENT]
    others = {SFT: run.sft_student} if (run.sft_student / READY).exists() else {}
    subjects = [student, *(_like(student, name, fetch(path)) for name, path in others.items())]
    subjects += [found[PROXY]] if PROXY in found else []
    return [*subjects, _like(student, START, local_model(run.models / "student"))]


def _like(student: Subject, name: str, model: Path) -> Subject:
    return Subject(name, replace(student.answerer, model=str(model)))


def of_study(study: StudyDirectory, plain: Answerer, dtype: str | None) -> list[Subject]:
    """Every arm's student, and every proxy once, whichever arms learned from it.

    Raises:
        BenchmarkError: an arm has no student yet.
    """
    found: dict[tuple[str, ...], Subject] = {}
    for run in study.runs():
        for one in of_run(run, plain, dtype):
            key = (
                (one.adapter_name, run.config().proxy.model_dump_json())
                if one.reports[0][1] == PROXY
                else (run.id, one.name)
            )
            known = found.get(key)
            name = known.name if known else f"{run.id}-{one.name}"
            found[key] = replace(known or one, name=name, reports=(*(known.reports if known else ()), *one.reports))
    return list(found.values())


def _proxy(run: RunDirectory) -> str | None:
    """The adapter that the student learned from, or BASE; None where it learned from no proxy."""
    if (scored := SCORE.finished(run)) is not None:
        return scored.result.adapter
    assistant = ASSIST.finished(run)
    return None if assistant is None else assistant.result.adapter
