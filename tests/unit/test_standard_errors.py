"""Cluster-robust standard errors against loops, the spread between samples, and scipy's Student t."""

from __future__ import annotations

import math
import random

import pytest
from scipy.special import stdtrit

from proxykd.evaluation.standard_errors import ratio_of_sums, student_t, wilson


def drawn(prompts, samples, seed=0, own=0.5, common=0.5):
    """Summed NLLs, tokens and prompt of `samples` completions each of `prompts` prompts, which have a level in common."""
    chance = random.Random(seed)
    values, tokens, clusters = [], [], []
    for prompt in range(prompts):
        level = chance.gauss(2.0, common)
        for _ in range(samples):
            count = chance.randint(5, 60)
            values.append(count * (level + chance.gauss(0.0, own)))
            tokens.append(count)
            clusters.append(f"p{prompt}")
    return values, tokens, clusters


def by_loops(values, tokens, clusters):
    """The sandwich estimator of a ratio, written out."""
    total_value = total_tokens = 0.0
    for value, count in zip(values, tokens, strict=True):
        total_value += value
        total_tokens += count
    ratio = total_value / total_tokens
    names = sorted(set(clusters))
    meat = 0.0
    for name in names:
        residual = 0.0
        for value, count, cluster in zip(values, tokens, clusters, strict=True):
            if cluster == name:
                residual += value - ratio * count
        meat += residual * residual
    variance = len(names) / (len(names) - 1) * meat / total_tokens**2
    return ratio, math.sqrt(variance)


@pytest.mark.parametrize(("prompts", "samples"), [(7, 1), (7, 4), (2, 9), (60, 2)])
def test_the_error_is_the_sandwichs(prompts, samples):
    values, tokens, clusters = drawn(prompts, samples)
    assert ratio_of_sums(values, tokens, clusters) == pytest.approx(by_loops(values, tokens, clusters), rel=1e-12)


def test_records_of_prompts_of_their_own_have_the_error_of_records():
    values, tokens, _ = drawn(20, 1)
    ratio = sum(values) / sum(tokens)
    spread = sum((v - ratio * t) ** 2 for v, t in zip(values, tokens, strict=True))
    records = math.sqrt(spread * 20 / 19) / sum(tokens)
    assert ratio_of_sums(values, tokens, range(20)) == (pytest.approx(ratio), pytest.approx(records, rel=1e-12))


def test_a_prompt_that_is_asked_four_times_tells_no_more_than_once():
    """Four times the very same record: the error stays, where records as clusters would have halved it."""
    values, tokens, clusters = drawn(30, 1)
    once = ratio_of_sums(values, tokens, clusters)[1]
    assert ratio_of_sums(values * 4, tokens * 4, clusters * 4)[1] == pytest.approx(once, rel=1e-12)
    as_records = ratio_of_sums(values * 4, tokens * 4, range(120))[1]
    assert as_records == pytest.approx(once / 2, rel=0.02)


def test_the_error_is_the_spread_between_corpora_of_several_samples_a_prompt():
    found = [ratio_of_sums(*drawn(40, 4, seed)) for seed in range(400)]
    means, errors = zip(*found, strict=True)
    mean = sum(means) / 400
    spread = math.sqrt(sum((m - mean) ** 2 for m in means) / 399)
    assert sum(errors) / 400 == pytest.approx(spread, rel=0.1)
    records = [
        ratio_of_sums(values, tokens, range(160))[1] for values, tokens, _ in (drawn(40, 4, s) for s in range(50))
    ]
    assert sum(records) / 50 < 0.75 * spread


def test_one_prompt_knows_no_error_and_no_token_is_refused():
    assert ratio_of_sums([2.0, 4.0], [1, 2], ["p", "p"]) == (2.0, None)
    with pytest.raises(ValueError, match=r"enlarge corpus\.split"):
        ratio_of_sums([], [], [])


@pytest.mark.parametrize("share", [0.95, 0.975])
def test_student_t_is_scipys(share):
    for degrees in (1, 2, 3, 4, 7, 10, 11, 30, 1000):
        assert student_t(share, degrees) == pytest.approx(stdtrit(degrees, share), rel=5e-3)


@pytest.mark.parametrize(("right", "count"), [(24, 24), (0, 24), (12, 24), (2, 3)])
def test_wilsons_ends_are_one_standard_error_of_their_own_away(right, count):
    low, high = wilson(right / count, count)
    assert 0.0 <= low < high <= 1.0
    for end in (low, high):
        if 0.0 < end < 1.0 and not math.isclose(end, 1.0):
            assert abs(right / count - end) == pytest.approx(math.sqrt(end * (1 - end) / count))
    assert wilson(1.0, 24)[0] == pytest.approx(0.96)


def test_wilson_by_the_roots_of_its_equation():
    """Both ends are as many standard errors from the share as is asked, by their own."""
    for share, count, deviations in ((0.3, 40, 1.0), (0.3, 40, 1.96), (1.0, 12, 1.96)):
        for end in wilson(share, count, deviations):
            if 0 < end < 1:
                assert abs(share - end) == pytest.approx(deviations * math.sqrt(end * (1 - end) / count))
