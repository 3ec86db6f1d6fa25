"""The policies of the alignment, the gates, and the engine's adapter slot."""

from __future__ import annotations

import math

import pytest

from proxykd import gates
from proxykd.config import AlignmentConfig
from proxykd.errors import CorpusError, GateError
from proxykd.rounds import decide, growing_round, require_rounds, round_slice, sample_seed, stop_reason


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
        require_rounds(10, config)
    require_rounds(10, AlignmentConfig(rounds=0))
    for settings in ({}, {"pairs_per_round": 3}):
        for records in range(1, 60):
            for rounds in range(1, 20):
                config = AlignmentConfig(rounds=rounds, **settings)
                if records < rounds and not settings:
                    continue
                require_rounds(records, config)
                taken = [round_slice(number, records, config) for number in range(1, rounds + 1)]
                assert all(taken)
                if not settings:
                    assert max(map(len, taken)) - min(map(len, taken)) <= 1


def test_seeds_differ_by_round_and_record_and_stay():
    seeds = {sample_seed(1, number, f"r{i}") for number in range(10) for i in range(100)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert sample_seed(17, 3, "facts-01") == sample_seed(17, 3, "facts-01")


def test_decisions_say_why():
    config = AlignmentConfig()
    assert decide(2.0, 1.9, config).verdict == "promote"
    fell = decide(2.0, 2.04, config)
    assert (fell.verdict, fell.warning) == ("promote", True)
    rejected = decide(2.0, 2.051, config)
    assert rejected.verdict == "reject"
    assert "2.0000 -> 2.0510 (+0.0510" in rejected.reason


def test_alignment_stops_at_k_rounds_or_when_idle_twice():
    config = AlignmentConfig(rounds=4)
    assert stop_reason([2.0], config) is None
    assert stop_reason([2.0, 1.9, 1.899], config) is None
    assert "converged" in stop_reason([2.0, 1.9, 1.899, 1.898], config)
    assert stop_reason([2.0, 1.999, 1.8, 1.799], config) is None
    assert stop_reason([2.0, 1.9, 1.8, 1.7, 1.6], config) == "all 4 rounds done"
    assert stop_reason([2.0], AlignmentConfig(rounds=0)) == "all 0 rounds done"


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
