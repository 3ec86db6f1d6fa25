"""The student: NLL + alpha * trust * KL from the stored soft labels, equations (7) to (11), or what is compared."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from proxykd.models.loading import load_scorer
from proxykd.stages.distil import CurvePoint, DistilResult
from proxykd.text.corpus import Row
from proxykd.training.objectives import OBJECTIVES, DistilTask
from proxykd.training.resumable import ResumableTraining
from proxykd.training.saving import save_student
from proxykd.training.trainer import Step
from proxykd.training.worker import Worker


def distil(worker: Worker, task: DistilTask) -> DistilResult:
    """Trains the student, with points of its validation curve on the way, and saves it."""
    config = worker.config.distillation
    base = worker.run.models / "student"
    scorer = worker.workers.place(load_scorer(base, worker.config.student, seed=worker.config.seed))
    training = ResumableTraining(worker, scorer, config, task.records)
    total = training.total_steps
    every = -(-total // config.evaluations) if config.evaluations else total + 1
    curve: list[dict[str, Any]] = training.notes.setdefault("curve", [])

    def point() -> None:
        fidelity = worker.validate(scorer).fidelity()
        curve.append({**fidelity.model_dump(), "step": len(training.steps), "records": training.records_seen})
        if config.snapshots and training.steps:
            save_student(worker, scorer, base, worker.run.snapshot(len(training.steps)), fidelity)

    objective = OBJECTIVES[config.source](worker, task)

    def step(rows: list[Row]) -> Step:
        return training.trainer.step(*objective(training.trainer, rows))

    def after_step() -> None:
        if len(training.steps) % every == 0 or len(training.steps) == total:
            point()

    if not curve:
        point()
    steps = training.run(step, after_step)
    points = [CurvePoint.model_validate(point) for point in curve]
    save_student(worker, scorer, base, worker.run.student, points[-1])
    return DistilResult(
        loss_share=_shares([step.losses for step in steps]),
        grad_share=_shares([step.grad_norms for step in steps if step.grad_norms]),
        curve=points,
        steps=[step.facts() for step in steps],
    )


def _shares(values: list[dict[str, float]]) -> dict[str, float]:
    """Each term's part of the sum of the means; absolute, so that a negative variant shows too."""
    means = {name: abs(fmean(v[name] for v in values)) for name in (values[0] if values else ())}
    total = sum(means.values()) or 1.0
    return {name: value / total for name, value in means.items()}
