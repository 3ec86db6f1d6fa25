"""Verdicts hold their level: against every distribution of outcomes for few prompts, and in simulated certificates."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import gammaln
from scipy.stats import binom

from benchmarks.certificates import MARGIN, WORLDS, by_t, drawn, ours, wrongly_ready
from proxykd.certification.verdicts import (
    LEVEL,
    OUTCOMES,
    POWER,
    Verdict,
    counted,
    decide,
    fewest,
    high_bound,
    holm,
    low_bound,
    more_needed,
    p_not_above,
    p_not_ready,
    p_ready,
    weights_of,
)

VALUES = np.array(OUTCOMES)
ALIKE = np.ones(1)


def counts_of(*counts):
    return np.array(counts, dtype=float)


@pytest.mark.parametrize("margin", [0.01, 0.05, 0.3])
def test_without_ties_it_is_clopper_and_pearsons(margin):
    """Wins and losses alone: P(binomial(n, (1 - margin) / 2) >= wins)."""
    for n, wins in ((1, 1), (5, 5), (40, 0), (40, 23), (500, 240), (2000, 1100)):
        expected = binom.sf(wins - 1, n, (1 - margin) / 2)
        assert float(p_ready(counts_of(n - wins, 0, 0, 0, wins), margin)) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("margin", [0.005, 0.02, 0.05, 0.5])
def test_ties_alone_by_their_formula(margin):
    """The hardest case of the integral: many gammas of little weight against one."""
    for n in (1, 100, 1000, 3000, 10_000, 100_000):
        assert float(p_ready(counts_of(0, 0, n, 0, 0), margin)) == pytest.approx((1 - margin) ** n, abs=1e-7)


def test_ties_alone_show_by_their_number_that_it_is_no_worse():
    for n in (1, 20, 58, 59, 300):
        assert float(p_ready(counts_of(0, 0, n, 0, 0), 0.05)) == pytest.approx(0.95**n, abs=1e-7)
    assert fewest(0.05, LEVEL) == 59
    [too_few] = decide(counts_of([0, 0, 58, 0, 0]), counts_of([0, 0, 58, 0, 0]), 0.05)
    [enough] = decide(counts_of([0, 0, 59, 0, 0]), counts_of([0, 0, 59, 0, 0]), 0.05)
    assert (too_few.verdict, enough.verdict) == (Verdict.UNDECIDED, Verdict.READY)


@pytest.mark.parametrize("counts", [(3, 2, 20, 4, 3), (0, 1, 4, 0, 0), (40, 10, 100, 20, 30)])
def test_it_is_the_mass_of_dirichlet_weights(counts):
    """By drawing the weights."""
    shapes = np.array(counts) + np.array([1, 0, 0, 0, 0]) + 1e-12
    means = np.random.default_rng(0).dirichlet(shapes, size=400_000) @ VALUES
    for threshold in (-0.2, -0.05, 0.1):
        expected = float(np.mean(means <= threshold))
        error = 5 * math.sqrt(max(expected * (1 - expected), 1e-5) / 400_000)
        assert float(p_not_above(counts_of(*counts), threshold)) == pytest.approx(expected, abs=error)


def samples(n, kinds):
    """All ways in which n prompts come to so many kinds of outcomes."""
    if kinds == 1:
        return np.array([[n]])
    rows = [(first, rest) for first in range(n + 1) for rest in samples(n - first, kinds - 1)]
    return np.array([[first, *rest] for first, rest in rows])


def most_wrong(n, margin, level):
    """The largest chance of a wrong `ready` that any distribution with a mean of -margin gives n prompts."""
    found = samples(n, len(OUTCOMES)).astype(float)
    rejected = found[p_ready(found, margin) <= level]
    if not len(rejected):
        return 0.0
    log_ways = gammaln(n + 1) - gammaln(rejected + 1).sum(1)

    def chance(shares):
        shares = np.clip(shares, 1e-12, 1)
        masses = np.exp(log_ways + rejected @ np.log(shares))
        return -masses.sum(), -(masses @ rejected) / shares

    at_margin = [
        {"type": "eq", "fun": lambda shares: shares.sum() - 1},
        {"type": "eq", "fun": lambda shares: shares @ VALUES + margin},
    ]
    starts = np.random.default_rng(0).dirichlet(np.full(5, 0.5), size=12)
    ends = [
        minimize(chance, one, jac=True, method="SLSQP", bounds=[(1e-9, 1)] * 5, constraints=at_margin) for one in starts
    ]
    return max(
        (-one.fun for one in ends if abs(one.x.sum() - 1) < 1e-6 and abs(one.x @ VALUES + margin) < 1e-6), default=0.0
    )


@pytest.mark.parametrize(("n", "margin", "level"), list(product((5, 8, 11), (0.02, 0.05, 0.2), (0.05, 0.01))))
def test_no_distribution_of_outcomes_breaks_the_level_with_few_prompts(n, margin, level):
    assert most_wrong(n, margin, level) <= level + 1e-6


@pytest.mark.parametrize("n", [30, 60, 100])
def test_nor_does_any_of_wins_ties_and_losses_with_more(n):
    found = samples(n, 3)
    counts = np.zeros((len(found), 5))
    counts[:, [0, 2, 4]] = found
    log_ways = gammaln(n + 1) - gammaln(found + 1).sum(1)
    for level in (0.05, 0.005):
        rejected = p_ready(counts, MARGIN) <= level
        for won in [*np.linspace(0, (1 - MARGIN) / 2, 60), *np.geomspace(1e-4, 0.05, 20)]:
            shares = np.clip([won + MARGIN, 1 - 2 * won - MARGIN, won], 1e-300, 1)
            assert np.exp(log_ways[rejected] + found[rejected] @ np.log(shares)).sum() <= level + 1e-6


@pytest.mark.parametrize("prompts", [24, 120, 400])
@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
def test_of_2000_certificates_at_the_margin_few_are_wrong(world, prompts):
    """Over all slices of each. `python -m benchmarks.certificates` prints them all."""
    assert VALUES @ world.shares == pytest.approx(-MARGIN)
    counts = drawn(world, prompts, 2000, np.random.default_rng(1))
    assert wrongly_ready(counts, ours) <= LEVEL


def test_a_t_bound_would_be_wrong_far_more_often():
    world = next(one for one in WORLDS if one.name == "ties 95 %, never won")
    assert wrongly_ready(drawn(world, 400, 2000, np.random.default_rng(1)), by_t) > 3 * LEVEL


def test_holm_by_hand():
    equal = holm(np.array([0.01, 0.04, 0.03]), np.full(3, 1 / 3))
    assert equal == pytest.approx([0.03, 0.06, 0.06])
    # The whole weighs half. In order of p / weight: 0.02 / 0.5, then 0.02 / 0.25 of what is left, then the last.
    weighted = holm(np.array([0.02, 0.5, 0.02]), weights_of(3))
    assert weighted == pytest.approx([0.04, 0.5, 0.04])
    assert holm(np.array([0.2]), weights_of(1)) == pytest.approx([0.2])
    assert weights_of(5).sum() == pytest.approx(1)


def test_bounds_are_where_a_verdict_turns():
    counts = counts_of(5, 10, 200, 20, 9)
    low, high = low_bound(counts), high_bound(counts)
    assert float(p_ready(counts, -low)) == pytest.approx(LEVEL, abs=1e-6)
    assert float(p_not_ready(counts, -high)) == pytest.approx(LEVEL, abs=1e-6)
    assert low < counts @ VALUES / counts.sum() < high
    assert high_bound(counts[::-1]) == pytest.approx(-low)


def test_what_nobody_could_judge_counts_against_either_verdict():
    good, bad = counts_of(0, 0, 20, 0, 80), counts_of(80, 0, 20, 0, 0)
    lost, won = counts_of(100, 0, 0, 0, 0), counts_of(0, 0, 0, 0, 100)
    assert decide(good[None], good[None], 0.05)[0].verdict is Verdict.READY
    assert decide((good + lost)[None], (good + won)[None], 0.05)[0].verdict is Verdict.UNDECIDED
    assert decide(bad[None], bad[None], 0.05)[0].verdict is Verdict.NOT_READY
    assert decide((bad + lost)[None], (bad + won)[None], 0.05)[0].verdict is Verdict.UNDECIDED


@pytest.mark.parametrize("shares", [(0.05, 0.1, 0.7, 0.1, 0.05), (0.3, 0.1, 0.2, 0.1, 0.3), (0.2, 0, 0.75, 0, 0.05)])
def test_as_many_prompts_more_decide_as_often_as_is_promised(shares):
    seen = 80 * np.array(shares)
    more = more_needed(seen, seen, 0.05, LEVEL)
    again = np.random.default_rng(0).multinomial(80 + more, shares, size=3000).astype(float)
    decided = np.minimum(p_ready(again, 0.05), p_not_ready(again, 0.05)) <= LEVEL
    assert np.mean(decided) == pytest.approx(POWER, abs=0.06)


def test_at_the_margin_no_number_of_prompts_is_named():
    seen = counts_of(5, 0, 95, 0, 0)
    assert more_needed(seen, seen, 0.05, LEVEL) is None
    assert more_needed(counts_of(0, 0, 0, 0, 0), counts_of(0, 0, 0, 0, 0), 0.05, LEVEL) == fewest(0.05, LEVEL)


def test_outcomes_are_counted():
    assert list(counted([0.5, -1.0, 0.0, 0.0])) == [1, 0, 2, 1, 0]
