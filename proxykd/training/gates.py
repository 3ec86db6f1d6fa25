"""An alignment round's numerical gates (docs/design.md, The gates). Each aborts the run with the numbers it saw."""

from __future__ import annotations

import math
from collections.abc import Sequence

from proxykd.errors import GateError

STEP0_TOLERANCE = 1e-3


def check_step0(largest_margin: float, dpo_loss: float) -> None:
    """Before the first optimizer step policy and reference are the same: every margin 0, every DPO loss ln 2.

    Raises:
        GateError: they are not, so the reference log-probs are of another model than the policy's start.
    """
    if largest_margin > STEP0_TOLERANCE or abs(dpo_loss - math.log(2)) > STEP0_TOLERANCE:
        raise GateError(
            f"step-0 gate: before any training the largest |margin| is {largest_margin:.3g} nats and the DPO loss "
            f"{dpo_loss:.6f} (expected 0 and ln 2 = {math.log(2):.6f}, within {STEP0_TOLERANCE:g}): the reference "
            f"log-probs are not of the adapter that this round starts from"
        )


def parity(engine_logps: Sequence[float], trainer_logps: Sequence[float]) -> tuple[float, float]:
    """Mean and largest absolute difference a token between the engine's and the trainer's log-probs, in nats.

    Raises:
        GateError: there is no token to compare.
    """
    if not engine_logps:
        raise GateError("parity gate: no completion token to compare; raise alignment.parity_records")
    differences = [abs(a - b) for a, b in zip(engine_logps, trainer_logps, strict=True)]
    return math.fsum(differences) / len(differences), max(differences)


def check_parity(mean_abs: float, max_abs: float, threshold: float, adapter: str) -> None:
    """Engine and trainer must agree about the adapter that the round samples from and starts at.

    Raises:
        GateError: the mean difference is above the threshold.
    """
    if not mean_abs <= threshold:
        raise GateError(
            f"parity gate: engine and trainer differ by {mean_abs:.4f} nats a token on {adapter} (largest "
            f"{max_abs:.4f}), above alignment.parity_threshold {threshold:g}: the engine serves other weights than "
            f"the trainer holds"
        )
