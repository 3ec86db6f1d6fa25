"""The doubt against independent arithmetic: the fit, the cross-fitting, the curve; what is too little for one."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from proxykd.certification.certificate_model import Price
from proxykd.certification.doubt import FOLDS, Observation, cross_fitted, doubt_of, features, fitted
from proxykd.certification.outcomes import Outcome
from proxykd.certification.wording import doubt_sentence, fall_back_sentence, not_enough, signed

PRICE = Price(reply=0.002, currency="USD", source="a test")


def made_up(count, seed=0, knows=True, ties=True):
    """Answers whose log-probs tell how likely they are to be lost, or nothing."""
    chance = np.random.default_rng(seed)
    found = []
    for i in range(count):
        hard = chance.uniform()
        logps = tuple(float(x) for x in -chance.exponential(0.05 + (hard if knows else 0.5), chance.integers(3, 12)))
        net = float(chance.choice([-1.0, -0.5, 0.0, 0.5, 1.0], p=_odds(hard, ties)))
        found.append(Observation(f"{i:04d}", (logps,), Outcome(net, net), (1 - net) / 2))
    return found


def _odds(hard, ties):
    lost = 0.6 * hard
    return [lost, 0.1, 0.8 - lost, 0.05, 0.05] if ties else [lost, 0.0, 1.0 - lost, 0.0, 0.0]


def test_features_by_hand():
    assert features((-0.5, -1.5, -0.25)) == pytest.approx((-0.75, -1.5, -2.25))


def test_the_fit_is_where_its_penalised_likelihood_is_flat():
    """By its gradient, summed answer by answer: a tie is half an answer that is lost and half one that is not."""
    read = made_up(150)
    features_NF, lost_N = np.array([features(*one.logps) for one in read]), np.array([one.lost for one in read])
    model = fitted(features_NF, lost_N)
    slopes, level = [0.0] * 3, 0.0
    for row, lost in zip(features_NF, lost_N, strict=True):
        scaled = [(x - m) / s for x, m, s in zip(row, features_NF.mean(0), features_NF.std(0), strict=True)]
        error = (
            1 / (1 + math.exp(-model.intercept - sum(w * x for w, x in zip(model.weights, scaled, strict=True)))) - lost
        )
        slopes = [slope + error * x for slope, x in zip(slopes, scaled, strict=True)]
        level += error
    assert level == pytest.approx(0.0, abs=1e-6)
    assert slopes == pytest.approx([-w for w in model.weights], abs=1e-6)  # against a penalty of |w|^2 / 2


def test_no_prompt_has_a_part_in_its_own_doubt():
    read = made_up(120)
    features_NF, lost_N = np.array([features(*one.logps) for one in read]), np.array([one.lost for one in read])
    before = cross_fitted(features_NF, lost_N)
    for i in (0, 7, 119):
        other = lost_N.copy()
        other[i] = 1 - other[i] if other[i] != 0.5 else 1.0
        after = cross_fitted(features_NF, other)
        same_fold = np.arange(len(read)) % FOLDS == i % FOLDS
        assert (after[same_fold] == before[same_fold]).all()
        assert (after[~same_fold] != before[~same_fold]).all()


def test_the_curve_by_loops():
    read = made_up(200, ties=False)
    report, doubt = doubt_of(read, "5" * 64, ["k2", "k1"], PRICE)
    doubts = cross_fitted(np.array([features(*one.logps) for one in read]), np.array([one.lost for one in read]))
    ranked = sorted(zip(doubts, read, strict=True), key=lambda pair: (-pair[0], pair[1].id))
    mean = sum(one.outcome.worst for one in read) / 200
    for point in report.curve:
        count = round(200 * point.share)
        kept = [one.outcome.worst for _, one in ranked[count:]]
        assert point.sent == count
        assert point.answers.net == pytest.approx(sum(kept) / 200)
        assert point.answers.losses == sum(net < 0 for net in kept)
        assert point.answers.low <= point.answers.net <= point.answers.high
        assert point.at_random == pytest.approx(mean * (200 - count) / 200, abs=1e-6)
        losses = sum(one.outcome.worst < 0 for one in read)
        assert point.at_best == pytest.approx(-max(0, losses - count) / 200, abs=1e-6)
        assert point.cost == pytest.approx(1000 * count / 200 * 0.002, abs=1e-6)
        assert sum(doubt.of(*one.logps) >= point.threshold for one in read) == count
    lost = [d for d, one in ranked if one.lost > 0.5]
    rest = [d for d, one in ranked if one.lost <= 0.5]
    above = sum((a > b) + (a == b) / 2 for a in lost for b in rest)
    assert report.ranking == pytest.approx(above / (len(lost) * len(rest)), abs=1e-6)
    assert report.brier == pytest.approx(sum((d - one.lost) ** 2 for d, one in ranked) / 200, abs=1e-6)
    assert sum(part.prompts for part in report.bins) == 200
    assert sum(part.prompts * part.lost for part in report.bins) == pytest.approx(
        sum(one.lost for one in read), abs=1e-3
    )
    assert report.brier < report.brier_of_mean
    assert report.p_ranking < 0.001
    assert doubt.certified == ["k1", "k2"]
    assert doubt.threshold(0.0) > 1
    assert doubt.threshold(1.0) <= min(doubt.of(*one.logps) for one in read)


def test_what_a_threshold_comes_to_is_told_by_the_next_point_of_the_curve():
    report, _ = doubt_of(made_up(200), "", [], PRICE)
    tenth, fifth = report.curve[3], report.curve[4]
    told = fall_back_sentence(report, tenth.threshold - 1e-5, "gpt")
    assert told.startswith(f"a doubt of {tenth.threshold - 1e-5:.3f} or more goes to gpt.")
    assert "it would be 200 at most, 0.4 USD" in told
    assert f"the net {signed(fifth.answers.net)}" in told
    assert "it would be 100 at most" in fall_back_sentence(report, tenth.threshold, "gpt")


def test_it_is_calibrated_on_prompts_it_has_not_seen():
    _, doubt = doubt_of(made_up(2000), "", [], None)
    new = made_up(4000, seed=1)
    told = sorted((doubt.of(*one.logps), one.lost) for one in new)
    for part in (told[:1000], told[1000:2000], told[2000:3000], told[3000:]):
        said, seen = (sum(column) / 1000 for column in zip(*part, strict=True))
        assert said == pytest.approx(seen, abs=0.035)  # three standard errors
    sent = sum(value >= doubt.threshold(0.2) for value, _ in told) / 4000
    assert sent == pytest.approx(0.2, abs=0.03)


def test_what_the_student_does_not_tell_the_proxy_may():
    """The student's log-probs know nothing here, and the proxy's do."""
    told, asked = made_up(600), made_up(600, knows=False)
    both = [replace(one, logps=(other.logps[0], one.logps[0])) for one, other in zip(told, asked, strict=True)]
    alone, _ = doubt_of([replace(one, logps=one.logps[:1]) for one in both], "", [], PRICE)
    report, doubt = doubt_of(both, "", [], PRICE, "r01-abc")
    assert alone.ranking < 0.6 < 0.65 < report.ranking
    assert (doubt.proxy, len(doubt.weights)) == ("r01-abc", 6)
    found = [*features(both[0].logps[0]), *features(both[0].logps[1])]
    parts = zip(found, doubt.means, doubt.scales, doubt.weights, strict=True)
    by_hand = doubt.intercept + sum(weight * (x - mean) / scale for x, mean, scale, weight in parts)
    assert doubt.of(*both[0].logps) == pytest.approx(1 / (1 + math.exp(-by_hand)))
    with pytest.raises(ValueError, match="longer"):
        doubt.of(both[0].logps[0])


def test_log_probs_that_tell_nothing_are_seen_to():
    """Of 40 certificates, chance says otherwise in few."""
    reports = [doubt_of(made_up(150, seed=seed, knows=False), "", [], None)[0] for seed in range(40)]
    assert sum(report.p_ranking < 0.05 for report in reports) <= 5
    assert all(report.curve[0].cost is None for report in reports)
    assert "tells nothing that is shown" in doubt_sentence(next(one for one in reports if one.p_ranking > 0.05))


def test_the_order_of_prompts_changes_nothing():
    read = made_up(130)
    assert doubt_of(read, "s", ["k"], None) == doubt_of(read[::-1], "s", ["k"], None)


@pytest.mark.parametrize(
    ("nets", "more", "said"),
    [
        ([-1.0] * 10 + [0.0] * 30, 60, "about 60 prompts more"),
        ([-1.0] * 10 + [0.0] * 190, 200, "about 200 prompts more"),
        ([-1.0] * 190 + [1.0] * 10, 200, "190 of 200 answers lost"),
        ([0.0] * 500, None, "0 of 500 answers lost; it takes 100 prompts, 20 of them lost and 20 not"),
        ([], 100, "about 100 prompts more"),
    ],
)
def test_too_little_is_said_to_be(nets, more, said):
    read = [Observation(f"{i:04d}", ((-0.1, -0.2),), Outcome(net, net), (1 - net) / 2) for i, net in enumerate(nets)]
    report, doubt = doubt_of(read, "", [], None)
    assert (doubt, report.more, report.curve) == (None, more, ())
    assert said in not_enough(report)


def test_what_the_judge_left_open_is_left_out():
    read = made_up(150)
    opened = [*read, *(Observation(f"x{i}", ((-9.0,),), Outcome(-1.0, 1.0), 1.0) for i in range(50))]
    assert doubt_of(opened, "", [], None) == doubt_of(read, "", [], None)
