"""The student: NLL + alpha * trust * KL from the stored soft labels, equations (7) to (11), or what is compared."""

from __future__ import annotations

from statistics import fmean

from proxykd.models.loading import load_scorer
from proxykd.stages.distil import DistilResult
from proxykd.stages.trained import CurvePoint
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
    training = ResumableTraining(worker, scorer, config, task.records, student=True)

    def at_point(point: CurvePoint) -> None:
        if config.snapshots:
            save_student(worker, scorer, base, worker.run.snapshot(point.step), point)

    objective = OBJECTIVES[config.source](worker, task)

    def step(rows: list[Row]) -> Step:
        return training.trainer.step(*objective(training.trainer, rows))

    training.begin_curve()
    steps = training.run(step, at_point)
    save_student(worker, scorer, base, worker.run.offline_student, training.validation().fidelity())
    return DistilResult(
        loss_share=_shares([step.losses for step in steps]),
        grad_share=_shares([step.grad_norms for step in steps if step.grad_norms]),
        **training.facts(),
    )


def _shares(values: list[dict[str, float]]) -> dict[str, float]:
    """Each term's part of the sum of the means; absolute, so that a negative variant shows too."""
    means = {name: abs(fmean(v[name] for v in values)) for name in (values[0] if values else ())}
    total = sum(means.values()) or 1.0
    return {name: value / total for name, value in means.items()}
