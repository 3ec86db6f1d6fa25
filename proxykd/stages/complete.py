"""The open teacher's own completions of D_s's prompts, for the white-box baselines."""

from __future__ import annotations

from proxykd.config import USES, RunConfig
from proxykd.costs.demands import Demand, ProcessDemands
from proxykd.costs.estimator import Estimator, StageEstimate
from proxykd.models.architecture import require_architecture
from proxykd.stages.stage import Result, Stage


class CompleteResult(Result):
    records: int

    def headline(self) -> dict[str, int]:
        return {"records": self.records}


def _settings(config: RunConfig) -> list[object]:
    assert config.white_box is not None
    return [config.proxy.source, config.white_box.teacher, config.white_box.max_new_tokens, config.engine]


def _demands(processes: ProcessDemands) -> list[list[Demand]]:
    return [[processes.engine("open teacher"), processes.feeders]]


def _cost(by: Estimator) -> list[StageEstimate]:
    """Of the assistant's prompts too, where there is one: it is taught on D_w and D_p."""
    assert by.config.open_teacher is not None
    records = by.serving(*USES) if by.config.teaching.assistant else by.distillation
    return [by.sampled("complete", require_architecture(by.config.open_teacher), round(records))]


COMPLETE = Stage(
    "complete",
    "actors.run.baselines:complete",
    CompleteResult,
    when=lambda config: config.teaching.open_teacher,
    inputs=("corpus",),
    settings=_settings,
    files=lambda run, _: [run.completed(run.config().corpus.slice_for("distillation"))],
    demands=_demands,
    cost=_cost,
)
