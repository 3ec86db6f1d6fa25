"""Equations (7) to (11): the student, from stored soft labels or from what that is compared with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from proxykd.config import RunConfig
from proxykd.costs.demands import Demand, ProcessDemands
from proxykd.costs.estimator import Estimator, StageEstimate
from proxykd.models.architecture import require_architecture
from proxykd.runs.run_directory import RunDirectory
from proxykd.stages.stage import Milestone, Stage
from proxykd.stages.trained import TrainedResult, fidelity_milestones


class DistilResult(TrainedResult):
    loss_share: dict[str, float]
    """Each term's part of the sum of the mean losses."""
    grad_share: dict[str, float]
    """Each term's part of the sum of the terms' gradient norms, where they were measured."""

    def milestones(self) -> Iterator[Milestone]:
        for point in self.curve:
            yield from fidelity_milestones("student", point.step, point)


def _settings(config: RunConfig) -> list[object]:
    white_box = config.white_box if config.teaching.open_teacher else None
    return [config.proxy.source, config.student, config.distillation, white_box]


def _files(run: RunDirectory, _: DistilResult) -> list[Path]:
    return [*run.snapshots().values(), run.offline_student]


def _demands(processes: ProcessDemands) -> list[list[Demand]]:
    return [[processes.trainer("student", processes.config.student), processes.readers]]


def _cost(by: Estimator) -> list[StageEstimate]:
    """With the points of the validation curve, and the forward passes of the models that are read as it goes."""
    stage, records = by.config.distillation, by.distillation + by.unlabelled
    seconds = by.training(by.config.student, stage, records)
    seconds += (1 + stage.evaluations) * by.forward(by.student, by.validation)
    for read in by.config.read_beside_student:
        seconds += by.forward(require_architecture(read), records * stage.epochs)
    return [by.trained("distil", records * stage.epochs, seconds)]


DISTIL = Stage(
    "distil",
    "actors.run.distillation:distil",
    DistilResult,
    inputs=("corpus", "score", "answer", "retokenise", "complete", "assist"),
    settings=_settings,
    files=_files,
    demands=_demands,
    cost=_cost,
)
