"""Equation (1): the proxy's SFT on D_w."""

from __future__ import annotations

from proxykd.costs.demands import Demand, ProcessDemands
from proxykd.costs.estimator import Estimator, StageEstimate
from proxykd.evaluation.measures import Fidelity
from proxykd.stages.stage import Stage
from proxykd.stages.trained import AdapterResult, adapter_files


class WarmupResult(AdapterResult):
    nll_loss: float
    """Mean over the steps."""
    base: Fidelity
    """On the validation slice, before the first step."""


def _demands(processes: ProcessDemands) -> list[list[Demand]]:
    return [[processes.trainer("proxy", processes.config.proxy), processes.readers]]


def _cost(by: Estimator) -> list[StageEstimate]:
    """With the validation slice before, and at the points of its curve; then the task's questions."""
    stage = by.config.warmup
    seconds = by.training(by.config.proxy, stage, by.warmup)
    seconds += (1 + stage.evaluations) * by.forward(by.proxy, by.validation) + by.asking()
    return [by.trained("warm-up", by.warmup * stage.epochs, seconds)]


WARMUP = Stage(
    "warmup",
    "actors.run.alignment:warm_up",
    WarmupResult,
    when=lambda config: config.teaching.aligned,
    inputs=("corpus",),
    settings=lambda config: [config.proxy, config.warmup, config.alignment.task],
    files=adapter_files,
    demands=_demands,
    cost=_cost,
)
