"""Equation (1): the proxy's SFT on D_w, from fresh adapters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from proxykd.evaluation.task import Asked
from proxykd.stages.warmup import WarmupResult
from proxykd.training.asking import ask
from proxykd.training.resumable import ResumableTraining
from proxykd.training.saving import save_answers, save_proxy
from proxykd.training.stage_losses import SftLoss
from proxykd.training.worker import Worker


@dataclass(frozen=True)
class WarmupTask:
    records: int
    task: Sequence[Asked] = ()


def warm_up(worker: Worker, task: WarmupTask) -> WarmupResult:
    """Trains, validates, asks and saves the proxy of round 0."""
    scorer = worker.proxy(None)
    training = ResumableTraining(worker, scorer, worker.config.warmup, task.records)
    training.begin_curve()
    steps = training.run(lambda rows: training.trainer.step(rows, SftLoss(rows)))
    validation = training.validation()
    adapter = save_proxy(worker, scorer, "warmup", 0, None, validation)
    answers = ask(worker, scorer, task.task)
    save_answers(worker, adapter, answers.grades)
    return WarmupResult(
        adapter=adapter,
        validation=validation.fidelity(),
        task=answers.score,
        base=training.curve[0],
        nll_loss=fmean(step.losses["nll"] for step in steps),
        **training.facts(),
    )
