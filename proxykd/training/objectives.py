"""What the student learns from, by `distillation.source`: a global batch's rows as trained on, and their loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from proxykd.data.label_shards import unpack_labels
from proxykd.data.soft_labels import LabelSource
from proxykd.losses.divergences import Divergence
from proxykd.models.scorer import CompletionScorer
from proxykd.text.corpus import Row
from proxykd.training.across_losses import ACROSS
from proxykd.training.sampling import sample_rows
from proxykd.training.stage_losses import DenseLoss, DistillationLoss, SftLoss, ShiftLoss
from proxykd.training.trainer import StageLoss, Trainer
from proxykd.training.worker import Worker


@dataclass(frozen=True)
class DistilTask:
    """The student's records of one epoch; the proxy that gave its labels or assists it, and how they were made."""

    records: int
    adapter: str | None = None
    labels: LabelSource | None = None


Objective = Callable[[Trainer, list[Row]], tuple[list[Row], StageLoss]]


def soft_labels(worker: Worker, task: DistilTask) -> Objective:
    """Proxy-KD, equation (11): the stored distribution of the proxy beside the teacher's text."""
    assert task.labels is not None
    source, config = task.labels, worker.config.distillation
    loss = DistillationLoss if worker.config.student.tokenizer == "proxy" else ACROSS[config.across]

    def of(_: Trainer, rows: list[Row]) -> tuple[list[Row], StageLoss]:
        rows = [unpack_labels(row, source) for row in rows]
        return rows, loss(rows, config)

    return of


def shift(worker: Worker, task: DistilTask) -> Objective:
    """After Delta-KD (Cao et al., arXiv 2509.14526): the student's own start, moved as alignment moved the proxy."""
    assert task.labels is not None
    source, base, untaught = task.labels, worker.proxy(None, trainable=False), worker.untaught_student()

    def of(_: Trainer, rows: list[Row]) -> tuple[list[Row], StageLoss]:
        rows = [unpack_labels(row, source) for row in rows]
        return rows, ShiftLoss(rows, worker.config.distillation, base, untaught)

    return of


def hard_labels(worker: Worker, _: DistilTask) -> Objective:
    """Black-box KD: the NLL of equation (8) alone, in the same unit as beside a KL."""
    by_sequence = worker.config.distillation.kl_reduction == "sequence_mean"
    return lambda _, rows: (rows, SftLoss(rows, by_sequence))


def open_teacher(worker: Worker, _: DistilTask) -> Objective:
    """White-box KD: the open teacher's whole distribution on its own completions, or on the student's."""
    return _dense(worker, worker.open_teacher())


def assistant(worker: Worker, task: DistilTask) -> Objective:
    """TAKD (Mirzadeh et al., arXiv 1902.03393): the same from the assistant between the two."""
    return _dense(worker, worker.proxy(task.adapter, trainable=False))


def _dense(worker: Worker, teacher: CompletionScorer) -> Objective:
    white_box = worker.config.white_box
    assert white_box is not None
    divergence = Divergence(white_box.divergence, white_box.temperature)

    def of(trainer: Trainer, rows: list[Row]) -> tuple[list[Row], StageLoss]:
        if white_box.on_policy:
            rows = sample_rows(worker, trainer.scorer, rows, white_box.max_new_tokens, trainer.steps)
        return rows, DenseLoss(rows, teacher, divergence)

    return of


OBJECTIVES: dict[str, Callable[[Worker, DistilTask], Objective]] = {
    "proxy": soft_labels,
    "base": soft_labels,
    "shift": shift,
    "none": hard_labels,
    "white_box": open_teacher,
    "assistant": assistant,
}
