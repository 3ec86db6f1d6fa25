"""Whether a set of comparisons shows that the student is no worse than the teacher by more than a margin.

A prompt is one observation in OUTCOMES: the mean over both orders of a judged pair, a win being 1, a tie 0, a loss -1;
of exact scores the student's less the teacher's. What is tested is their mean, the net share of wins: by an exact-level
bound for bounded outcomes, since t and bootstrap bounds fail where most outcomes are ties (`python -m
benchmarks.certificates`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

OUTCOMES = (-1.0, -0.5, 0.0, 0.5, 1.0)
"""From two losses to two wins."""
LEVEL = 0.05
"""The chance, over all slices, that any is called ready (or any not ready) wrongly."""
POWER = 0.8
"""The chance of a verdict that the number of prompts still needed is reckoned for."""
MOST_PROMPTS = 1_000_000
"""Beyond this the student counts as standing at the margin: no number of prompts is named."""
NODES, AT_ONCE = 1024, 2048
"""Of the integral, and rows that are reckoned together."""
CERTAIN = 30.0
"""Standard deviations beyond which a probability is 0 or 1."""
Counts = NDArray[np.float64]
"""Prompts of each outcome, the last axis in the order of OUTCOMES."""


class Verdict(StrEnum):
    READY = "ready"
    NOT_READY = "not ready"
    UNDECIDED = "not enough data"


@dataclass(frozen=True)
class Decision:
    """Of one slice. Both p-values are Holm's over all slices; `more` prompts are needed for a verdict, None where no
    number would do, 0 where there is one."""

    verdict: Verdict
    p_ready: float
    p_not_ready: float
    more: int | None


def p_not_above(counts_SO: Counts, threshold: float) -> Counts:
    """The p-value of each row of `counts_SO` against a mean of at most `threshold`: Gaffke's, P(w0 * -1 + sum_i w_i x_i
    <= threshold) with flat Dirichlet weights w over the n outcomes and one more at its worst.

    Of two values it is Clopper and Pearson's. For others its level is a conjecture, which
    `tests/unit/certification/test_verdicts.py` holds against all distributions over OUTCOMES by adding up every sample
    (Gaffke, Math. Methods Statist. 14:451, 2005; Learned-Miller and Thomas, arXiv 1905.06208). The weights are gammas
    over their sum, so the sum's sign decides, whose probability is Imhof's integral (Biometrika 48:419, 1961):
    to 1e-7 for margins from 0.005.
    """
    shapes = np.array(counts_SO, dtype=np.float64)
    shapes[..., 0] += 1.0
    return _negative_mass(shapes, np.array(OUTCOMES) - threshold)


def p_ready(counts_SO: Counts, margin: float) -> Counts:
    """Against a student that is worse by `margin` or more."""
    return p_not_above(counts_SO, -margin)


def p_not_ready(counts_SO: Counts, margin: float) -> Counts:
    """Against a student that is worse by `margin` or less."""
    return p_not_above(np.asarray(counts_SO)[..., ::-1], margin)


def low_bound(counts_O: Counts, level: float = LEVEL) -> float:
    """The mean's one-sided lower bound: the largest threshold that is rejected at `level`."""
    low, high = OUTCOMES[0], OUTCOMES[-1]
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if float(p_not_above(counts_O, middle)) <= level else (low, middle)
    return low


def high_bound(counts_O: Counts, level: float = LEVEL) -> float:
    return -low_bound(np.asarray(counts_O)[::-1], level)


def decide(worst_SO: Counts, best_SO: Counts, margin: float) -> list[Decision]:
    """A decision a slice, of which the first is the whole. What nobody could judge counts as lost in `worst_SO`, by
    which a slice is ready, and as won in `best_SO`, by which it is not: whatever is missing, and why, the level
    holds."""
    weights = weights_of(len(worst_SO))
    ready, not_ready = holm(p_ready(worst_SO, margin), weights), holm(p_not_ready(best_SO, margin), weights)
    found = []
    for worst, best, yes, no, weight in zip(worst_SO, best_SO, ready, not_ready, weights, strict=True):
        verdict = Verdict.READY if yes <= LEVEL else Verdict.NOT_READY if no <= LEVEL else Verdict.UNDECIDED
        more = more_needed(worst, best, margin, LEVEL * weight) if verdict is Verdict.UNDECIDED else 0
        found.append(Decision(verdict, float(yes), float(no), more))
    return found


def weights_of(slices: int) -> Counts:
    """Of LEVEL: half to the first slice, which is the whole, so that it does not pay for how many others are looked at;
    the other half to these alike."""
    if slices == 1:
        return np.ones(1)
    return np.array([0.5] + [0.5 / (slices - 1)] * (slices - 1))


def holm(p_S: Counts, weights_S: Counts) -> Counts:
    """p-values that hold for all of them together, whatever they have in common (Holm, Scand. J. Statist. 6:65, 1979,
    with weights that add up to 1)."""
    order = np.argsort(p_S / weights_S, kind="stable")
    left = np.cumsum(weights_S[order][::-1])[::-1]
    adjusted = np.empty(len(p_S))
    adjusted[order] = np.minimum(np.maximum.accumulate((p_S / weights_S)[order] * left), 1.0)
    return adjusted


def more_needed(worst_O: Counts, best_O: Counts, margin: float, level: float) -> int | None:
    """How many prompts more, were they to turn out as those so far, would give a verdict at `level` with a chance of
    POWER; None for more than MOST_PROMPTS. A power is had by a level that is stricter by its quantile."""
    normal = NormalDist()
    strict = normal.cdf(normal.inv_cdf(level) - normal.inv_cdf(POWER))
    count = float(np.sum(worst_O))
    if not count:
        return fewest(margin, level)

    def decided(prompts: float) -> bool:
        scale = prompts / count
        ready, not_ready = p_ready(worst_O * scale, margin), p_not_ready(best_O * scale, margin)
        return min(float(ready), float(not_ready)) <= strict

    if not decided(MOST_PROMPTS):
        return None
    low, high = math.floor(count), MOST_PROMPTS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decided(middle) else (middle, high)
    return max(1, high - round(count))


def fewest(margin: float, level: float) -> int:
    """How many prompts it takes to be ready where every one of them is a tie: (1 - margin)^n <= level."""
    return math.ceil(math.log(level) / math.log1p(-margin))


def counted(outcomes: Sequence[float]) -> Counts:
    """How many there are of each outcome."""
    return np.bincount([OUTCOMES.index(one) for one in outcomes], minlength=len(OUTCOMES)).astype(np.float64)


def _negative_mass(shapes: Counts, weights_O: Counts) -> Counts:
    """P(sum_k weights_k * gamma(shapes_k) <= 0), by rows: 1/2 - (1/pi) * integral of sin(theta) / (u rho), theta being
    sum_k shapes_k arctan(weights_k u), and log(rho) half of sum_k shapes_k log(1 + (weights_k u)^2)."""
    rows = shapes.reshape(-1, len(weights_O))
    mean, spread = rows @ weights_O, np.sqrt(rows @ weights_O**2)
    mass = (mean < 0).astype(np.float64)
    unsure = np.abs(mean) < CERTAIN * spread
    scales = np.exp2(np.round(np.log2(np.where(unsure, spread, 1.0))))
    points, widths = _nodes()
    for scale in np.unique(scales[unsure]):
        u = np.outer(weights_O, points / scale)
        angles, decays = np.arctan(u), np.log1p(u**2) / 2
        places = np.flatnonzero(unsure & (scales == scale))
        for here in np.split(places, range(AT_ONCE, len(places), AT_ONCE)):
            mass[here] = 0.5 - (np.sin(rows[here] @ angles) * np.exp(-(rows[here] @ decays))) @ widths
    return np.asarray(np.clip(mass, 0.0, 1.0).reshape(shapes.shape[:-1]))


@cache
def _nodes() -> tuple[Counts, Counts]:
    """Points u = tan(angle) of [0, inf), and du / (pi u) around each, by Gauss and Legendre over the angle."""
    points, widths = np.polynomial.legendre.leggauss(NODES)
    angles = (points + 1) * math.pi / 4
    return np.tan(angles), widths / (4 * np.tan(angles) * np.cos(angles) ** 2)
