"""How a stage's learning rate rises and falls over its steps: a function of the step alone, so that a resume needs
no state."""

from __future__ import annotations

import math

from proxykd.config import TrainConfig


def rate_at(config: TrainConfig, step: int, steps: int) -> float:
    """Returns the rate of step `step`, counted from 0, of a stage of so many.

    It rises on a line over `warmup_share` of the steps, no step at 0. Then it stays, or falls on a line or on half a
    cosine (Loshchilov and Hutter, arXiv 1608.03983, one cycle), to what would be 0 at step `steps`.
    """
    warm = round(config.warmup_share * steps)
    if step < warm:
        return config.learning_rate * (step + 1) / (warm + 1)
    done = (step - warm) / (steps - warm)
    match config.schedule:
        case "linear":
            return config.learning_rate * (1.0 - done)
        case "cosine":
            return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))
    return config.learning_rate
