"""The student by SFT on the teacher's text alone, token mean: what the method has to be better than."""

from __future__ import annotations

from dataclasses import dataclass

from proxykd.models.loading import load_scorer
from proxykd.stages.sft import SftResult
from proxykd.training.resumable import ResumableTraining
from proxykd.training.saving import save_student
from proxykd.training.stage_losses import SftLoss
from proxykd.training.worker import Worker


@dataclass(frozen=True)
class SftTask:
    records: int


def sft(worker: Worker, task: SftTask) -> SftResult:
    """Trains and saves it, from the same start as the student."""
    config, base = worker.config.sft, worker.run.models / "student"
    assert config is not None
    scorer = worker.workers.place(load_scorer(base, worker.config.student, seed=worker.config.seed))
    training = ResumableTraining(worker, scorer, config, task.records, student=True)
    training.begin_curve()
    training.run(lambda rows: training.trainer.step(rows, SftLoss(rows)))
    save_student(worker, scorer, base, worker.run.sft_student, training.validation().fidelity())
    return SftResult(**training.facts())
