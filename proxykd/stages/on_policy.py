"""A phase on the student's own samples, after the offline one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from proxykd.config import RunConfig
from proxykd.costs.demands import Demand, ProcessDemands
from proxykd.costs.estimator import Estimator, StageEstimate
from proxykd.runs.run_directory import RunDirectory
from proxykd.stages.distil import DISTIL
from proxykd.stages.stage import Milestone, Stage
from proxykd.stages.trained import TrainedResult, fidelity_milestones


class OnPolicyResult(TrainedResult):
    """`kept` is 0 where the student stayed as the distillation left it."""

    drift: str | None
    """Why its samples ended the phase before its last step; None where they did not."""
    sampled_tokens: int
    """Of all samples, over all steps."""

    def headline(self) -> dict[str, Any]:
        found = {"kept": self.kept, "held_out_nll": self.kept_point.held_out_nll}
        return found if self.drift is None else {**found, "drift": self.drift}

    def milestones(self) -> Iterator[Milestone]:
        for point in self.curve:
            yield from fidelity_milestones("student_on_policy", point.step, point)


def student_stage(config: RunConfig) -> Stage[Any]:
    """The stage that leaves the student which a run of this config is for."""
    return DISTIL if config.on_policy is None else ON_POLICY


def _files(run: RunDirectory, _: OnPolicyResult) -> list[Path]:
    return [run.on_policy_student]


def _demands(processes: ProcessDemands) -> list[list[Demand]]:
    config = processes.config
    asked = config.on_policy is not None and config.on_policy.source == "engine"
    engine = [processes.engine("proxy")] if asked else []
    return [[processes.trainer("student on-policy", config.student), processes.readers, *engine]]


def _cost(by: Estimator) -> list[StageEstimate]:
    """The samples, which the trainers draw; the judge's forward passes; training, on both sides of each pair where
    those are preferences; and the points of the validation curve."""
    phase = by.config.on_policy
    assert phase is not None
    judge, sides = (by.proxy, 1) if phase.judge == "proxy" else (by.student, by.text.pair)
    seconds, judged = by.drawing(by.config.student, phase, by.distillation), sides * by.distillation * phase.epochs
    if phase.source == "engine":
        seconds += by.device.engine_start_s + by.scored("on_policy", judge, judged).seconds
    else:
        seconds += by.forward(judge, judged)
    seconds += by.training(by.config.student, phase, sides * by.distillation)
    seconds += (1 + phase.evaluations) * by.forward(by.student, by.validation)
    pairs = phase.judge == "preference"
    records = by.distillation * phase.epochs * (2 if pairs else 1)
    return [by.trained("on_policy", records, seconds, pairs=pairs)]


ON_POLICY = Stage(
    "on_policy",
    "actors.run.distillation:on_policy",
    OnPolicyResult,
    when=lambda config: config.on_policy is not None,
    inputs=("corpus", "align", "score", "distil"),
    settings=lambda config: [config.on_policy],
    files=_files,
    demands=_demands,
    cost=_cost,
)
