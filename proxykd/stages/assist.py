"""TAKD's teacher assistant (Mirzadeh et al., arXiv 1902.03393)."""

from __future__ import annotations

from pathlib import Path

from proxykd.config import RunConfig
from proxykd.costs.demands import Demand, ProcessDemands
from proxykd.costs.estimator import Estimator, StageEstimate
from proxykd.models.architecture import require_architecture
from proxykd.runs.run_directory import RunDirectory
from proxykd.stages.stage import Stage
from proxykd.stages.trained import AdapterResult, adapter_files


class AssistResult(AdapterResult):
    pass


def _settings(config: RunConfig) -> list[object]:
    assert config.white_box is not None
    return [config.proxy, config.white_box.assistant, config.white_box.temperature]


def _files(run: RunDirectory, result: AssistResult) -> list[Path]:
    """With the open teacher's completions of its own slices, where they are not D_s: those came with `complete`."""
    corpus = run.config().corpus
    slices = set(corpus.slices_for("warmup", "alignment")) - {corpus.slice_for("distillation")}
    return [*adapter_files(run, result), *(run.completed(name) for name in sorted(slices))]


def _demands(processes: ProcessDemands) -> list[list[Demand]]:
    return [[processes.trainer("assistant", processes.config.proxy), processes.readers]]


def _cost(by: Estimator) -> list[StageEstimate]:
    """With the open teacher's forward passes, and the validation slice at the points of its curve."""
    assert by.config.white_box is not None
    stage, records = by.config.white_box.assistant, by.serving("warmup", "alignment")
    teacher = require_architecture(by.config.white_box.teacher)
    seconds = by.training(by.config.proxy, stage, records) + by.forward(teacher, records * stage.epochs)
    seconds += stage.evaluations * by.forward(by.proxy, by.validation)
    return [by.trained("assist", records * stage.epochs, seconds)]


ASSIST = Stage(
    "assist",
    "actors.run.baselines:assist",
    AssistResult,
    when=lambda config: config.teaching.assistant,
    inputs=("complete",),
    settings=_settings,
    files=_files,
    demands=_demands,
    cost=_cost,
)
