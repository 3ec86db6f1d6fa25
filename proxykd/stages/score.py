"""Appendix A.1: the proxy's soft labels on D_s, and what trust is reckoned from."""

from __future__ import annotations

from proxykd.config import RunConfig
from proxykd.costs.demands import Demand, ProcessDemands
from proxykd.costs.estimator import Estimator, StageEstimate
from proxykd.evaluation.measures import LabelStatistics
from proxykd.losses.trust import reduction_of
from proxykd.stages.stage import Result, Stage


class LabelsResult(Result, LabelStatistics):
    segments: int
    """Of the corpus, whose records were scored."""

    def headline(self) -> dict[str, str]:
        return {"adapter": self.adapter}


def _demands(processes: ProcessDemands) -> list[list[Demand]]:
    if processes.config.score.source == "engine":
        return [[processes.engine("proxy"), processes.feeders]]
    return [[processes.trainer("proxy"), *processes.kept_engine]]


def _cost(by: Estimator) -> list[StageEstimate]:
    if by.config.score.source == "trainer":
        return [by.trained("score", by.distillation, by.forward(by.proxy, by.distillation))]
    return [by.scored("score", by.proxy, by.distillation)]


def _unaligned(config: RunConfig) -> list[object]:
    """What an aligned proxy depends on by its rounds already."""
    return [config.proxy, config.engine, config.score, reduction_of(config.distillation.trust)]


SCORE = Stage(
    "score",
    "actors.run.distillation:score",
    LabelsResult,
    when=lambda config: config.teaching.labels,
    inputs=("corpus", "align"),
    settings=_unaligned,
    files=lambda run, result: [run.soft_labels(result.adapter)],
    demands=_demands,
    cost=_cost,
)
