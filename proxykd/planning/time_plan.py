"""Tokens and hours that a run's stages take, by each one's own formula in the table of stages."""

from __future__ import annotations

from proxykd.config import RunConfig
from proxykd.costs.devices import Device
from proxykd.costs.estimator import Estimator, StageEstimate, Text
from proxykd.stages.table import stages_of


def estimate(config: RunConfig, text: Text, device: Device) -> list[StageEstimate]:
    """Every stage of a run on devices of one kind, as many as `resources` names.

    Raises:
        ModelError: the size of a model is unknown.
    """
    estimator = Estimator(config, text, device)
    return [estimated for stage in stages_of(config) for estimated in stage.cost(estimator)]
