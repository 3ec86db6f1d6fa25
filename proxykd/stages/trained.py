"""What results of training have in common."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from proxykd.evaluation.measures import Fidelity
from proxykd.runs.storage import RunDirectory
from proxykd.stages.stage import Milestone, Result

StepFacts = dict[str, Any]
"""A step of training: each measure by its name, the gradient's norm, and each term's where it was measured."""


class TrainedResult(Result):
    """Of a stage that trains a model."""

    steps: list[StepFacts]


class AdapterResult(TrainedResult):
    """Of a stage that has trained the proxy."""

    adapter: str
    """Its directory under adapters/."""
    validation: Fidelity

    def headline(self) -> dict[str, Any]:
        return {
            "adapter": self.adapter,
            "held_out_nll": self.validation.held_out_nll,
            "top1_agreement": self.validation.top1_agreement,
        }

    def milestones(self) -> Iterator[Milestone]:
        yield from fidelity_milestones("proxy", 0, self.validation)


def adapter_files(run: RunDirectory, result: AdapterResult) -> list[Path]:
    """The adapter and its validation scores."""
    return [run.adapters / result.adapter, run.validation(result.adapter)]


def fidelity_milestones(name: str, at: int, measured: Fidelity) -> Iterator[Milestone]:
    yield f"{name}/held_out_nll", at, measured.held_out_nll
    yield f"{name}/top1_agreement", at, measured.top1_agreement
