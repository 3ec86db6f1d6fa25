"""Equation (1): the proxy's SFT on D_w, from fresh adapters."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

from proxykd.stages.warmup import WarmupResult
from proxykd.training.resumable import ResumableTraining
from proxykd.training.saving import save_proxy
from proxykd.training.stage_losses import SftLoss
from proxykd.training.worker import Worker


@dataclass(frozen=True)
class WarmupTask:
    records: int


def warm_up(worker: Worker, task: WarmupTask) -> WarmupResult:
    """Trains, saves and validates the proxy of round 0."""
    scorer = worker.proxy(None)
    training = ResumableTraining(worker, scorer, worker.config.warmup, task.records)
    training.begin_curve()
    steps = training.run(lambda rows: training.trainer.step(rows, SftLoss(rows)))
    validation = training.validation()
    return WarmupResult(
        adapter=save_proxy(worker, scorer, "warmup", 0, None, validation),
        validation=validation.fidelity(),
        base=training.curve[0],
        nll_loss=fmean(step.losses["nll"] for step in steps),
        **training.facts(),
    )
