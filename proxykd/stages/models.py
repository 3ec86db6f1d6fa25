"""The models that a run starts from."""

from __future__ import annotations

from proxykd.stages.stage import Result, Stage


class ModelsResult(Result):
    parameters: dict[str, int | None]
    """Of each model, by its name in the run directory; None where nothing says."""


MODELS = Stage(
    "models",
    "actors.run.preparation:prepare_models",
    ModelsResult,
    demands=lambda processes: [[processes.models]],
)
