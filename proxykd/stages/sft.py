"""What the same answers buy without a proxy: the student by SFT on all of the training text, beside the student."""

from __future__ import annotations

from proxykd.config import USES, RunConfig
from proxykd.costs.demands import Demand, ProcessDemands
from proxykd.costs.estimator import Estimator, StageEstimate
from proxykd.stages.stage import Stage
from proxykd.stages.trained import TrainedResult


class SftResult(TrainedResult):
    pass


def _settings(config: RunConfig) -> list[object]:
    return [config.proxy.source, config.student, config.sft]


def _demands(processes: ProcessDemands) -> list[list[Demand]]:
    return [[processes.trainer("student by SFT", processes.config.student), processes.readers]]


def _cost(by: Estimator) -> list[StageEstimate]:
    """With the points of its validation curve."""
    assert by.config.sft is not None
    stage, records = by.config.sft, by.serving(*USES)
    seconds = by.training(by.config.student, stage, records)
    seconds += (1 + stage.evaluations) * by.forward(by.student, by.validation)
    return [by.trained("sft", records * stage.epochs, seconds)]


SFT = Stage(
    "sft",
    "actors.run.baselines:sft",
    SftResult,
    when=lambda config: config.sft is not None,
    inputs=("corpus", "retokenise"),
    settings=_settings,
    files=lambda run, _: [run.sft_student],
    demands=_demands,
    cost=_cost,
)
