"""The policies of the alignment, the gates, and the engine's adapter slot."""

from __future__ import annotations

import math

import pytest

from proxykd.config import AlignmentConfig
from proxykd.data.round_records import growing_round, require_rounds, round_slice
from proxykd.errors import CorpusError, GateError
from proxykd.evaluation.promotion import Decision, NllChange, ScoreChange, decide, round_rate, stop_reason
from proxykd.stages.align import in_force
from proxykd.text.seeds import sample_seed
from proxykd.training import gates
from tests.stage_results import aligned


@pytest.mark.parametrize(("records", "rounds"), [(152, 3), (7, 3), (16, 16), (100, 7)])
def test_by_default_all_rounds_make_one_epoch(records, rounds):
    config = AlignmentConfig(rounds=rounds)
    taken = [i for number in range(1, rounds + 1) for i in round_slice(number, records, config)]
    assert taken == list(range(records))


def test_a_set_number_of_pairs_wraps_around():
    config = AlignmentConfig(rounds=9, pairs_per_round=4)
    assert round_slice(1, 6, config) == [0, 1, 2, 3]
    assert round_slice(2, 6, config) == [4, 5, 0, 1]


def test_a_round_takes_no_record_twice():
    """Twice the same prompt with the same seed would be twice the same pair."""
    config = AlignmentConfig(rounds=9, pairs_per_round=10)
    assert [sorted(round_slice(number, 6, config)) for number in (1, 2, 3)] == [list(range(6))] * 3
    assert round_slice(2, 6, config) == [4, 5, 0, 1, 2, 3]
    for records in range(1, 30):
        for number in range(1, 10):
            taken = round_slice(number, records, config)
            assert len(set(taken)) == len(taken) == min(10, records)
            grown = growing_round([records] * number, config)
            assert len(set(grown)) == len(grown) == min(10, records)


def test_more_rounds_than_records_are_refused_and_no_round_is_empty():
    config = AlignmentConfig(rounds=16)
    with pytest.raises(
        CorpusError, match=r"has 10 records for alignment\.rounds=16.*set alignment\.rounds=10 or fewer"
    ):
        require_rounds(10, "alignment", config)
    require_rounds(10, "alignment", AlignmentConfig(rounds=0))
    for settings in ({}, {"pairs_per_round": 3}):
        for records in range(1, 60):
            for rounds in range(1, 20):
                config = AlignmentConfig(rounds=rounds, **settings)
                if records < rounds and not settings:
                    continue
                require_rounds(records, "alignment", config)
                taken = [round_slice(number, records, config) for number in range(1, rounds + 1)]
                assert all(taken)
                if not settings:
                    assert max(map(len, taken)) - min(map(len, taken)) <= 1


def test_seeds_differ_by_round_and_record_and_stay():
    seeds = {sample_seed(1, number, f"r{i}") for number in range(10) for i in range(100)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert sample_seed(17, 3, "facts-01") == sample_seed(17, 3, "facts-01")


def change(nll, stderr=0.0, prompts=30, before=2.0):
    return NllChange(before, before + nll, stderr, prompts)


def test_decisions_say_why():
    better = "validation NLL 2.0000 -> 1.9000 (-0.1000 ± 0.0000 nats a token)"
    assert decide(change(-0.1)) == Decision("promote", better)
    worse = "validation NLL 2.0000 -> 2.0510 (+0.0510 ± 0.0000 nats a token): surely worse"
    assert decide(change(0.051)) == Decision("reject", worse, warning=True)
    unsure = decide(change(0.0))
    assert (unsure.verdict, unsure.warning) == ("promote", True)
    assert unsure.reason.endswith(": better or worse, within its error")


def test_noise_does_not_reject_but_warns():
    """With 29 degrees of freedom a change is sure from 1.699 standard errors on."""
    bound = 1.699 * 0.02
    found = {nll: decide(change(nll, 0.02)) for nll in (bound + 1e-3, bound - 1e-3, 1e-3 - bound, -bound - 1e-3)}
    assert [one.verdict for one in found.values()] == ["reject", "promote", "promote", "promote"]
    assert [one.warning for one in found.values()] == [True, True, True, False]


def test_a_single_prompt_decides_nothing():
    alone = change(0.5, None, prompts=1)
    assert (decide(alone).verdict, decide(alone).warning) == ("promote", True)
    assert "(+0.5000 nats a token)" in decide(alone).reason
    assert stop_reason([alone, alone], AlignmentConfig()) is None


def test_few_prompts_need_a_larger_rise():
    assert decide(change(0.05, 0.02, prompts=30)).verdict == "reject"
    assert decide(change(0.05, 0.02, prompts=3)).verdict == "promote"  # t is 2.92
    assert decide(change(0.07, 0.02, prompts=3)).verdict == "reject"


def test_each_rejected_round_makes_those_after_it_gentler():
    config = AlignmentConfig(learning_rate=8e-4)
    assert round_rate([], config) == round_rate(["promote", "promote"], config) == 8e-4
    assert round_rate(["reject"], config) == round_rate(["promote", "reject", "promote"], config) == 4e-4
    assert round_rate(["reject", "reject"], config) == pytest.approx(2e-4)
    assert round_rate(["reject"], AlignmentConfig(learning_rate=8e-4, after_rejection=0.1)) == pytest.approx(8e-5)


def test_alignment_stops_at_k_rounds_or_when_idle_twice():
    config = AlignmentConfig(rounds=4)
    idle, better = change(-0.001), change(-0.1)
    assert stop_reason([], config) is None
    assert stop_reason([better, idle], config) is None
    assert "converged" in stop_reason([better, idle, idle], config)
    assert stop_reason([idle, better, idle], config) is None
    assert stop_reason([better] * 4, config) == "all 4 rounds done"
    assert stop_reason([], AlignmentConfig(rounds=0)) == "all 0 rounds done"


def test_noise_is_no_convergence():
    """0.001 better may be 0.01 better: where the error says so, the alignment goes on."""
    config = AlignmentConfig(rounds=9, min_improvement=0.005)
    unsure, sure = change(-0.001, 0.004), change(-0.001, 0.002)
    assert stop_reason([unsure, unsure], config) is None
    assert stop_reason([sure, unsure], config) is None
    told = stop_reason([sure, sure], config)
    assert told == (
        "converged: validation NLL improved by less than 0.005 nats a token for 2 rounds "
        "(-0.0010 ± 0.0020; -0.0010 ± 0.0020)"
    )


def test_a_rejected_round_leaves_the_proxy_where_it_was():
    found = stop_reason([change(-0.3, 0.01), None, None], AlignmentConfig(rounds=9))
    assert (
        found == "converged: validation NLL improved by less than 0.005 nats a token for 2 rounds (rejected; rejected)"
    )


def tosses(heads, of):
    """The chance of so many heads or fewer."""
    return sum(math.comb(of, i) for i in range(heads + 1)) / 2**of


@pytest.mark.parametrize(
    ("won", "lost", "verdict", "warning"),
    [
        (0, 5, "reject", True),  # 1/32
        (0, 4, "promote", True),  # 1/16: not sure, though a t-test of 100 differences has t = 2.03
        (1, 7, "reject", True),  # 9/256
        (1, 6, "promote", True),  # 8/128
        (5, 0, "promote", False),
        (4, 0, "promote", True),
        (0, 0, "promote", True),
        (40, 60, "reject", True),
        (42, 58, "promote", True),
    ],
)
def test_a_score_is_judged_by_the_questions_that_changed_hands(won, lost, verdict, warning):
    """However many questions both answered alike."""
    for alike in (0, 95, 4000):
        found = decide(ScoreChange(alike // 2 + lost, won, lost, alike + won + lost or 1))
        assert (found.verdict, found.warning) == (verdict, warning)
        assert f"p {tosses(min(won, lost), won + lost):.3f}" in found.reason
    assert (verdict == "reject") == (lost > won and tosses(won, won + lost) <= 0.05)


def test_a_score_says_what_it_was_and_is():
    moved = ScoreChange(right=26, won=1, lost=7, questions=50)
    assert decide(moved) == Decision(
        "reject", "task score 0.5200 -> 0.4000 (1 won, 7 lost of 50, p 0.035): surely worse", warning=True
    )
    assert moved.measure().model_dump() == {"before": 0.52, "after": 0.4, "won": 1, "lost": 7, "questions": 50}


def test_equally_good_rounds_are_seldom_rejected_whatever_their_size():
    """Over all ways that n changed answers fall, each by the toss of a coin."""
    for changed in range(1, 60):
        rejected = sum(
            math.comb(changed, lost)
            for lost in range(changed + 1)
            if ScoreChange(60, changed - lost, lost, 90).surely_worse
        )
        assert rejected / 2**changed <= 0.05


def test_a_score_converges_where_enough_questions_say_so_and_by_rejections():
    """A gain is at most the share that was won: of 600 questions none won is surely less than 0.005 (0.995**600 is
    0.049), of 500 not."""
    config = AlignmentConfig(rounds=9, task="t.jsonl")
    assert stop_reason([ScoreChange(300, 0, 0, 500)] * 2, config) is None
    told = stop_reason([ScoreChange(300, 0, 2, 600), None], config)
    assert told == "converged: task score improved by less than 0.005 for 2 rounds (0 won, 2 lost of 600; rejected)"
    large = ScoreChange(9000, 40, 1000, 14000)
    assert large.surely_worse
    assert large.surely_gained_less(0.005)  # 70 are expected of that share, with a deviation of 8.3
    assert not ScoreChange(9000, 60, 1000, 14000).surely_gained_less(0.005)
    assert not large.surely_gained_less(0.0)


def test_the_adapter_in_force_is_that_of_the_last_promotion():
    decisions = ("reject", "promote", "reject", "reject", "promote")
    outcomes = [aligned(i, f"a{i}", decision=decision) for i, decision in enumerate(decisions, 1)]
    assert in_force("w", outcomes) == ["w", "w", "a2", "a2", "a2", "a5"]
    assert in_force("w", []) == ["w"]


def test_the_step_0_gate():
    gates.check_step0(0.0, math.log(2))
    with pytest.raises(GateError, match=r"largest \|margin\| is 0\.5"):
        gates.check_step0(0.5, math.log(2))
    with pytest.raises(GateError, match=r"DPO loss 0\.700000"):
        gates.check_step0(0.0, 0.7)


def test_the_parity_gate():
    assert gates.parity([-1.0, -2.0], [-1.25, -2.0]) == (0.125, 0.25)
    gates.check_parity(0.009, 0.3, 0.01, "r01")
    with pytest.raises(GateError, match=r"0\.0110 nats a token on r01"):
        gates.check_parity(0.011, 0.3, 0.01, "r01")
    with pytest.raises(GateError, match="differ by nan"):
        gates.check_parity(math.nan, math.nan, 0.01, "r01")
    with pytest.raises(GateError, match="no completion token"):
        gates.parity([], [])
