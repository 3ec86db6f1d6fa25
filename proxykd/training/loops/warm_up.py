"""Equation (1): the proxy's SFT on D_w, from fresh adapters."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

from proxykd.evaluation.measures import Fidelity
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
    if "base" not in training.notes:
        training.notes["base"] = worker.validate(scorer).fidelity().model_dump()
    steps = training.run(lambda rows: training.trainer.step(rows, SftLoss(rows)))
    validation = worker.validate(scorer)
    return WarmupResult(
        adapter=save_proxy(worker, scorer, "warmup", 0, None, validation),
        validation=validation.fidelity(),
        base=Fidelity.model_validate(training.notes["base"]),
        nll_loss=fmean(step.losses["nll"] for step in steps),
        steps=[step.facts() for step in steps],
    )
