"""How far a mean over records can be trusted, where some records belong together: cluster-robust standard errors.

Records of one prompt (several samples of it, or conversations that differ in case, white space or system message alone)
are no independent evidence, so they are one cluster.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from statistics import NormalDist


def ratio_of_sums(
    values: Sequence[float], units: Sequence[float], clusters: Sequence[Hashable]
) -> tuple[float, float | None]:
    """sum(values) / sum(units), each record's tokens say, and its standard error; None for fewer than two clusters.

    By linearisation: with e the sum of value - ratio * unit over a cluster, and G clusters,
    stderr = sqrt(G / (G - 1) * sum e^2) / sum(units). Given differences of values, it is the paired error of a change.

    Raises:
        ValueError: there is no unit.
    """
    total = sum(units)
    if total == 0:
        raise ValueError("no held-out token to evaluate on; enlarge corpus.split.validation and corpus.split.test")
    ratio = math.fsum(values) / total
    residuals: dict[Hashable, float] = defaultdict(float)
    for value, unit, cluster in zip(values, units, clusters, strict=True):
        residuals[cluster] += value - ratio * unit
    count = len(residuals)
    if count < 2:
        return ratio, None
    spread = math.fsum(residual**2 for residual in residuals.values())
    return ratio, math.sqrt(spread * count / (count - 1)) / total


def student_t(share: float, degrees: int) -> float:
    """The quantile of Student's t below which lies `share`, to half a percent.

    Exact for one and two degrees of freedom, else the expansion around the normal quantile (Abramowitz and Stegun,
    26.7.5).
    """
    if degrees == 1:
        return math.tan(math.pi * (share - 0.5))
    if degrees == 2:
        return (2 * share - 1) / math.sqrt(2 * share * (1 - share))
    z = NormalDist().inv_cdf(share)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    powers = [float(degrees) ** power for power in (1, 2, 3, 4)]
    return z + math.fsum(term / power for term, power in zip(terms, powers, strict=True))


def wilson(share: float, count: int, deviations: float = 1.0) -> tuple[float, float]:
    """Returns Wilson's score interval of a share among `count` independent cases, so many standard errors to either
    side: the shares q from which this one is no farther than deviations * sqrt(q (1 - q) / count). Unlike `share ±
    stderr` it is no point where the share is 0 or 1."""
    of = deviations**2 / count
    centre = (share + of / 2) / (1 + of)
    half = deviations * math.sqrt(share * (1 - share) / count + of / (4 * count)) / (1 + of)
    return max(0.0, centre - half), min(1.0, centre + half)
