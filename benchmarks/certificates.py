"""How often a certificate calls a student ready that is worse by exactly the margin: by our verdicts, by t, by
bootstrap.

    python -m benchmarks.certificates [--certificates 2000]

Each certificate has the whole and seven slices of it, three by one column and four by another, so that they overlap. In
each of them the student stands exactly at the margin: whatever is called ready is called so wrongly. Worlds differ in
what prompts come to, from coin flips to students that tie nearly always.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from proxykd.certification.verdicts import LEVEL, OUTCOMES, holm, p_ready, weights_of
from proxykd.evaluation.standard_errors import student_t

MARGIN = 0.05
THIRDS, QUARTERS = 3, 4
DRAWS = 400
Array = NDArray[np.float64]
FamilyTest = Callable[[Array], Array]
"""p-values of slices by their counts of outcomes; arrays of (certificates, slices, outcomes) and (certificates,
slices)."""


@dataclass(frozen=True)
class World:
    """How often prompts come to each outcome, from two losses to two wins. Their mean is -MARGIN."""

    name: str
    shares: tuple[float, ...]


def at_the_margin(name: str, low: float, half_low: float, half_high: float, high: float) -> World:
    """The outcomes' shares but for ties; what is short of the margin is made up by losses of both orders."""
    loss = max(0.0, low + (MARGIN - (low + half_low / 2 - half_high / 2 - high)))
    return World(name, (loss, half_low, 1 - loss - half_low - half_high - high, half_high, high))


WORLDS = (
    at_the_margin("no ties: 52.5 % lost", 0.525, 0.0, 0.0, 0.475),
    at_the_margin("all five alike", 0.2, 0.2, 0.2, 0.2),
    at_the_margin("ties 70 %", 0.1, 0.05, 0.05, 0.1),
    at_the_margin("ties 95 %, never won", 0.05, 0.0, 0.0, 0.0),
    at_the_margin("split 10 %, never won", 0.0, 0.1, 0.0, 0.0),
    at_the_margin("won half, lost rarely and whole", 0.0, 0.0, 0.2, 0.0),
    at_the_margin("one order of 60 % won", 0.0, 0.0, 0.6, 0.0),
)
SIZES = (24, 60, 120, 400, 1200)


def drawn(world: World, prompts: int, certificates: int, chance: np.random.Generator) -> Array:
    """Counts of outcomes: (certificates, slices, outcomes), the whole first."""
    cells = chance.integers(THIRDS * QUARTERS, size=(certificates, prompts))
    outcomes = chance.choice(len(OUTCOMES), p=world.shares, size=(certificates, prompts))
    table = np.zeros((certificates, THIRDS * QUARTERS, len(OUTCOMES)))
    np.add.at(table, (np.arange(certificates)[:, None], cells, outcomes), 1.0)
    table = table.reshape(certificates, THIRDS, QUARTERS, len(OUTCOMES))
    return np.concatenate([table.sum((1, 2))[:, None], table.sum(2), table.sum(1)], axis=1)


def ours(counts: Array) -> Array:
    return p_ready(counts, MARGIN)


def by_t(counts: Array) -> Array:
    """Student's t against the margin."""
    values, n = np.array(OUTCOMES), counts.sum(-1)
    mean = counts @ values / np.maximum(n, 1)
    spread = np.sqrt(np.maximum(counts @ values**2 / np.maximum(n, 1) - mean**2, 0) * n / np.maximum(n - 1, 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (mean + MARGIN) / (spread / np.sqrt(np.maximum(n, 1)))
    levels = np.geomspace(1e-6, 0.5, 200)
    p = np.ones_like(t)
    for degrees in np.unique(n.astype(int)):
        if degrees > 2:
            quantiles = np.array([student_t(1 - level, degrees - 1) for level in levels])
            here = n == degrees
            p[here] = levels[np.minimum(np.searchsorted(-quantiles, -t[here]), len(levels) - 1)]
            p[here & ~(t > 0)] = 1.0
    return without_spread(counts, p)


def without_spread(counts: Array, p: Array) -> Array:
    """The p-values, but that a slice whose outcomes are all alike is never ready: by t and bootstrap it would be
    sure."""
    return np.where((counts > 0).sum(-1) < 2, 1.0, p)


def by_bootstrap(counts: Array) -> Array:
    """The share of redrawn samples whose mean is at the margin or below."""
    chance = np.random.default_rng(0)
    n = counts.sum(-1).astype(int)
    shares = counts / np.maximum(n, 1)[..., None]
    shares[n == 0, 2] = 1.0
    means = chance.multinomial(n, shares, size=(DRAWS, *n.shape)) @ np.array(OUTCOMES) / np.maximum(n, 1)
    return without_spread(counts, (means <= -MARGIN).mean(0))


def wrongly_ready(counts: Array, test: FamilyTest) -> float:
    """The share of certificates of which any slice is called ready."""
    weights = weights_of(counts.shape[1])
    return float(np.mean([np.any(holm(p, weights) <= LEVEL) for p in test(counts)]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--certificates", type=int, default=2000)
    wanted = parser.parse_args()
    table = Table("world", "prompts", "ours", "t", "bootstrap", title="certificates with a slice wrongly ready")
    worst = {"ours": 0.0, "t": 0.0, "bootstrap": 0.0}
    for world in WORLDS:
        for prompts in SIZES:
            counts = drawn(world, prompts, wanted.certificates, np.random.default_rng(prompts))
            found = dict(zip(worst, (wrongly_ready(counts, test) for test in (ours, by_t, by_bootstrap)), strict=True))
            worst = {name: max(worst[name], share) for name, share in found.items()}
            table.add_row(world.name, str(prompts), *(f"{share:.2%}" for share in found.values()))
    console = Console(highlight=False)
    console.print(table)
    console.print("most: " + ", ".join(f"{name} {share:.2%}" for name, share in worst.items()))
    console.print(
        f"standard error of 5 % among {wanted.certificates}: {math.sqrt(0.05 * 0.95 / wanted.certificates):.2%}"
    )


if __name__ == "__main__":
    main()
