"""TAKD's assistant: the proxy's base with a fresh adapter, by forward KL from the open teacher on its own text."""

from __future__ import annotations

from dataclasses import dataclass

from proxykd.losses.divergences import Divergence
from proxykd.stages.assist import AssistResult
from proxykd.training.resumable import ResumableTraining
from proxykd.training.saving import save_proxy
from proxykd.training.stage_losses import DenseLoss
from proxykd.training.worker import Worker


@dataclass(frozen=True)
class AssistTask:
    records: int


def assist(worker: Worker, task: AssistTask) -> AssistResult:
    """Trains, saves and validates the assistant."""
    white_box = worker.config.white_box
    assert white_box is not None
    scorer, teacher = worker.proxy(None), worker.open_teacher()
    training = ResumableTraining(worker, scorer, white_box.assistant, task.records)
    divergence = Divergence("forward_kl", white_box.temperature)
    training.run(lambda rows: training.trainer.step(rows, DenseLoss(rows, teacher, divergence)))
    validation = training.validation()
    return AssistResult(
        adapter=save_proxy(worker, scorer, "assistant", None, None, validation),
        validation=validation.fidelity(),
        **training.facts(),
    )
