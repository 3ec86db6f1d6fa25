"""How many fewer records give the reference's quality, against hand arithmetic."""

from __future__ import annotations

import math
from itertools import product

import pytest

from proxykd.study.saving import as_text, bootstrap, by_seed_as_text, over_seeds, saving_of
from proxykd.study.study_model import SeedSaving

HALVING = [(100, 0.4), (200, 0.3), (400, 0.2), (800, 0.1)]


@pytest.mark.parametrize(
    ("curve", "target", "saving", "bound"),
    [
        (HALVING, 0.2, 0.5, None),  # 400 of 800
        (HALVING, 0.25, 1 - math.sqrt(200 * 400) / 800, None),  # half way in log(records)
        (HALVING, 0.325, 1 - 100 * 2**0.75 / 800, None),
        (HALVING, 0.1, 0.0, None),  # all of them, exactly
        (HALVING, 0.4, 1 - 100 / 800, "at_least"),
        (HALVING, 0.9, 1 - 100 / 800, "at_least"),
        (HALVING, 0.09, 0.0, "at_most"),
        (HALVING[:-1], 0.15, 0.5, "at_most"),  # an arm with 400 of the reference's 800 at most
        # From where on it is as good, not where it was so once: between 400 and 800.
        ([(100, 0.4), (200, 0.1), (400, 0.3), (800, 0.1)], 0.2, 1 - math.sqrt(400 * 800) / 800, None),
        ([(100, 0.4), (200, 0.1), (400, 0.1), (800, 0.3)], 0.2, 0.0, "at_most"),
        ([(800, 0.1)], 0.2, 0.0, "at_least"),
    ],
)
def test_where_a_curve_comes_to_the_targets_quality(curve, target, saving, bound):
    found, kind = saving_of(curve, target, 800)
    assert found == pytest.approx(saving, abs=1e-12)
    assert kind == bound


def test_the_interval_is_the_bootstraps_over_seeds():
    """Of few seeds every draw can be written down."""
    values = [0.1, 0.2, 0.25, 0.3, 0.5]
    means = sorted(sum(drawn) / 5 for drawn in product(values, repeat=5))
    low, high = bootstrap(values)
    assert low == pytest.approx(means[round(0.025 * len(means))], abs=0.005)
    assert high == pytest.approx(means[round(0.975 * len(means))], abs=0.005)
    assert bootstrap(values) == (low, high)
    assert bootstrap([0.1, 0.3]) == pytest.approx((0.1, 0.3))  # each end is a quarter of all draws


def of_seeds(*seeds):
    found = [SeedSaving(seed=number, saving=saving, bound=bound) for number, (saving, bound) in enumerate(seeds)]
    return over_seeds("whole_text", "whole-text Proxy-KD", "true_kl", found)


@pytest.mark.parametrize(
    ("seeds", "mean", "bound", "text"),
    [
        (((0.25, None), (0.35, None)), 0.3, None, "30 % (25 % to 35 %)"),
        (((0.25, None),), 0.25, None, "25 %"),
        (((0.25, None), (0.75, "at_least")), 0.5, "at_least", "at least 50 %"),
        (((0.25, None), (0.0, "at_most")), 0.125, "at_most", "at most 12 %"),
        (((0.0, "at_most"), (0.0, "at_most")), 0.0, "at_most", "at most 0 %"),
        (((0.75, "at_least"), (0.0, "at_most"), (0.3, None)), None, None, "undecided"),
    ],
)
def test_a_bound_in_any_seed_is_no_number(seeds, mean, bound, text):
    saving = of_seeds(*seeds)
    assert saving.mean == pytest.approx(mean)
    assert saving.bound == bound
    assert as_text(saving) == text
    if len(seeds) == 1 or any(kind for _, kind in seeds):
        assert (saving.low, saving.high) == (None, None)


def test_each_seed_is_told():
    saving = of_seeds((0.75, "at_least"), (0.0, "at_most"), (0.3, None))
    assert by_seed_as_text(saving) == "at least 75 %, at most 0 %, 30 %"
