"""What results of training have in common."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from proxykd.evaluation.benchmarks import Score
from proxykd.evaluation.measures import Fidelity
from proxykd.runs.run_directory import RunDirectory
from proxykd.stages.stage import Milestone, Result

StepFacts = dict[str, Any]
"""A step of training: each measure by its name, the gradient's norm, and each term's where it was measured."""


class CurvePoint(Fidelity):
    """The model on the validation slice after `step` steps; `records` are those that it had learned from by then."""

    step: int


class TrainedResult(Result):
    """Of a stage that trains a model."""

    steps: list[StepFacts]
    curve: list[CurvePoint]
    kept: int
    """The step of the curve's point whose weights are the result."""
    records: int
    """That it learned from, over all epochs."""

    @property
    def kept_point(self) -> CurvePoint:
        return next(point for point in self.curve if point.step == self.kept)


class AdapterResult(TrainedResult):
    """Of a stage that has trained the proxy."""

    adapter: str
    """Its directory under adapters/."""
    validation: Fidelity
    task: Score | None = None
    """Its score on alignment.task, where the run has one."""

    def headline(self) -> dict[str, Any]:
        found = {
            "adapter": self.adapter,
            "held_out_nll": self.validation.held_out_nll,
            "top1_agreement": self.validation.top1_agreement,
        }
        return found if self.task is None else {**found, "task_score": self.task.score}

    def milestones(self) -> Iterator[Milestone]:
        yield from self.proxy_milestones(0)

    def proxy_milestones(self, number: int) -> Iterator[Milestone]:
        """Of the proxy after so many rounds."""
        yield from fidelity_milestones("proxy", number, self.validation)
        if self.task is not None:
            yield "proxy/task_score", number, self.task.score


def adapter_files(run: RunDirectory, result: AdapterResult) -> list[Path]:
    """The adapter, its validation scores and its answers to the task."""
    return [run.adapters / result.adapter, run.validation(result.adapter)]


def fidelity_milestones(name: str, at: int, measured: Fidelity) -> Iterator[Milestone]:
    yield f"{name}/held_out_nll", at, measured.held_out_nll
    yield f"{name}/top1_agreement", at, measured.top1_agreement
