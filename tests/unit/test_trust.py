"""Equation (9) against arithmetic in plain floats, wherever a record is judged; and scores that are alike but for rounding."""

from __future__ import annotations

import math
import random
from statistics import fmean, pstdev

import numpy as np
import pytest

from proxykd.data.soft_labels import LabelSource, SoftLabels, write_label_shard
from proxykd.evaluation.soft_label_statistics import label_statistics
from proxykd.losses.trust import (
    Trust,
    histogram_mean,
    scores,
    trust_statistics,
    trust_weights,
    weight_histogram,
    weights_among,
)

SCORES = [-10.0, -35.5, -80.25, -12.0]
TENTHS = [-0.1 * 3] * 7
"""Alike; their mean and deviation are not, by rounding alone."""


def by_hand(score, mu, gamma):
    return 1 / (1 + math.exp(-(score - mu) / gamma))


def test_weights_are_equation_9():
    mean = sum(SCORES) / 4
    deviation = math.sqrt(sum((s - mean) ** 2 for s in SCORES) / 4)
    mu, gamma = trust_statistics(SCORES)
    assert (mu, gamma) == (pytest.approx(mean), pytest.approx(deviation))
    expected = [by_hand(score, mean, deviation) for score in SCORES]
    assert trust_weights(SCORES, mu, gamma) == pytest.approx(expected)
    trust = Trust("r01", mu, gamma, "sequence_sum")
    assert [trust.judge(score, 5)[1] for score in SCORES] == pytest.approx(expected)
    assert [trust.weight_function("sequence_sum")(score, 5) for score in SCORES] == pytest.approx(expected)
    by_token = Trust("r01", -2.0, 0.5, "token_mean")
    assert by_token.judge(-6.0, 4) == (pytest.approx(1.0), pytest.approx(by_hand(-1.5, -2.0, 0.5)))
    assert scores([-6.0, -1.0], [4, 0], "token_mean") == [-1.5, -1.0]


def test_completions_are_judged_among_themselves_as_by_what_was_kept_of_them():
    tokens = [2, 7, 16, 3]
    for trust, judged in (
        ("sequence_sum", SCORES),
        ("token_mean", [s / n for s, n in zip(SCORES, tokens, strict=True)]),
    ):
        mean, deviation = fmean(judged), pstdev(judged)
        kept = Trust.over("r01", SCORES, tokens, trust)
        assert (kept.adapter, kept.reduction) == ("r01", trust)
        assert (kept.mu, kept.gamma) == (pytest.approx(mean), pytest.approx(deviation))
        expected = pytest.approx([by_hand(score, mean, deviation) for score in judged])
        assert weights_among(SCORES, tokens, trust) == expected
        assert kept.weights(SCORES, tokens) == expected
        assert [kept.weight_function(trust)(s, n) for s, n in zip(SCORES, tokens, strict=True)] == expected


def test_a_histogram_holds_every_weight_and_their_mean_to_within_half_a_bar():
    weights = [0.0, 0.01, 0.05, 0.5, 0.999, 1.0]
    edges, counts = weight_histogram(weights)
    assert counts == [2, 1, *[0] * 8, 1, *[0] * 8, 2]
    assert edges == pytest.approx([i / 20 for i in range(21)])
    assert histogram_mean(edges, counts) == pytest.approx((0.025 * 2 + 0.075 + 0.525 + 0.975 * 2) / 6)
    assert histogram_mean(*weight_histogram([])) == 0.0


def test_far_scores_neither_overflow_nor_lose_what_is_left():
    assert trust_weights([-1e6, 0.0, 1e6], 0.0, 1.0) == [0.0, 0.5, 1.0]
    assert trust_weights([-40.0], 0.0, 1.0) == [pytest.approx(math.exp(-40.0), rel=1e-12)]


def test_a_weight_of_1_or_one_half_asks_nobody():
    trust = Trust("r01", -20.0, 5.0, "sequence_sum")
    assert trust.weight_function("none")(-99.0, 3) == 1.0
    assert trust.weight_function("constant")(-99.0, 3) == 0.5


@pytest.mark.parametrize("alike", [TENTHS, [-42.0] * 5, [0.0] * 3, [-41.3 * (1 + 1e-8 * i) for i in range(9)]])
def test_scores_that_are_alike_but_for_rounding_are_trusted_by_one_half(alike):
    """Their deviation is 0, or of the size of rounding (float32's in the last case)."""
    mu, gamma = trust_statistics(alike)
    assert gamma == 0.0
    assert trust_weights(alike, mu, gamma) == [0.5] * len(alike)
    # As a run of an earlier version stored them: the deviation as rounding left it.
    stored = Trust("r01", mu, float(np.std(alike)), "sequence_sum")
    assert [stored.judge(score, 3) for score in alike] == [(None, 0.5)] * len(alike)
    assert [stored.weight_function("sequence_sum")(score, 3) for score in alike] == [0.5] * len(alike)


def test_the_case_is_one_that_rounding_makes():
    assert 0 < float(np.std(TENTHS)) < 1e-15


def test_a_small_spread_that_is_real_stays():
    drawn = random.Random(1)
    close = [-200.0 + 0.01 * drawn.gauss(0, 1) for _ in range(50)]
    mu, gamma = trust_statistics(close)
    assert gamma == pytest.approx(pstdev(close), rel=1e-9)
    judged = Trust("r01", mu, gamma, "sequence_sum").weight_function("sequence_sum")
    # In float32 a score of 200 nats has a step of 1.5e-5, and these weights an error of 4e-4.
    assert [judged(s, 3) for s in close] == pytest.approx([by_hand(s, mu, gamma) for s in close], abs=1e-9)


def test_labels_that_are_alike_fill_the_histogram_at_one_half(tmp_path):
    source = LabelSource("a", "t", 50, 4)
    logps = np.full((2, 4), math.log(0.2))
    tail, actual = np.full(2, math.log(0.2)), np.full(2, -0.15)
    labels = [SoftLabels(str(i), "h", np.tile(np.arange(4), (2, 1)), logps, tail, actual, TENTHS[i]) for i in range(7)]
    path = tmp_path / "shard-00000.parquet"
    write_label_shard(path, labels, source)
    statistics = label_statistics([path], source, "sequence_sum")
    assert statistics.gamma == 0.0
    assert statistics.histogram.counts[statistics.histogram.edges.index(0.5)] == 7
