"""What is watched of a student's samples while it learns from them, and when that ends the phase: longer or shorter
ones, and ones that repeat themselves."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from proxykd.config import OnPolicyConfig
from proxykd.training.trainer import Step

LENGTH, ENDED, REPEATED = "sample_length", "ended_by_length", "repeated_4grams"


def watched(samples: Sequence[Sequence[int]], stops: Sequence[int]) -> dict[str, float]:
    """Sums over a global batch's samples, as a step has them: tokens, how many ended by length (without one of the
    stop tokens), and each one's share of repeated 4-grams."""
    return {
        LENGTH: float(sum(map(len, samples))),
        ENDED: float(sum(ids[-1] not in stops for ids in samples)),
        REPEATED: sum(map(repeated_4grams, samples)),
    }


def repeated_4grams(ids: Sequence[int]) -> float:
    """Returns the share of the 4-grams of token ids that stood in the sample before (rep-4 of Welleck et al., arXiv
    1908.04319); 0 where there is none."""
    grams = [tuple(ids[i : i + 4]) for i in range(len(ids) - 3)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def drift(steps: Sequence[Step], config: OnPolicyConfig) -> str | None:
    """Why the samples of the latest `drift_window` steps, against those of the first, end the phase, with the numbers;
    or None. The two windows share no step. Samples of a model that does not train do not drift."""
    window = config.drift_window
    if len(steps) < 2 * window or config.judge == "preference":
        return None
    (length, repeated), (length_now, repeated_now) = (
        [fmean(step.measures[name] for step in part) for name in (LENGTH, REPEATED)]
        for part in (steps[:window], steps[-window:])
    )
    when = f"over steps {len(steps) - window + 1} to {len(steps)}, against"
    if not 1 / config.max_length_ratio <= length_now / length <= config.max_length_ratio:
        return (
            f"samples have {length_now:.1f} tokens {when} {length:.1f} over the first {window}: beyond "
            f"on_policy.max_length_ratio {config.max_length_ratio:g}"
        )
    if repeated_now - repeated > config.max_repetition_rise:
        return (
            f"{repeated_now:.1%} of the samples' 4-grams are repeated {when} {repeated:.1%} over the first {window}: "
            f"beyond on_policy.max_repetition_rise {config.max_repetition_rise:g}"
        )
    return None
