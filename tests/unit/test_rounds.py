"""The policies of the alignment, the gates, and the engine's adapter slot."""

from __future__ import annotations

import asyncio
import math

import pytest

from actors.adapter_slot import AdapterSlot
from proxykd import gates
from proxykd.config import AlignmentConfig
from proxykd.errors import GateError
from proxykd.rounds import decide, round_slice, sample_seed, stop_reason


@pytest.mark.parametrize(("records", "rounds"), [(152, 3), (7, 3), (16, 16), (100, 7)])
def test_by_default_all_rounds_make_one_epoch(records, rounds):
    config = AlignmentConfig(rounds=rounds)
    taken = [i for number in range(1, rounds + 1) for i in round_slice(number, records, config)]
    assert taken == list(range(records))


def test_a_set_number_of_pairs_wraps_around():
    config = AlignmentConfig(rounds=9, pairs_per_round=4)
    assert round_slice(1, 6, config) == [0, 1, 2, 3]
    assert round_slice(2, 6, config) == [4, 5, 0, 1]


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


class Weights:
    """Records swaps and refuses one while a request runs."""

    def __init__(self):
        self.loaded, self.running, self.swaps = "base", 0, []

    async def swap(self, adapter):
        assert self.running == 0
        await asyncio.sleep(0.001)
        if adapter == "broken":
            raise OSError("no such adapter")
        self.loaded = adapter
        self.swaps.append(adapter)


async def request(slot, weights, adapter):
    async with slot.hold(adapter):
        weights.running += 1
        for _ in range(3):
            assert weights.loaded == adapter
            await asyncio.sleep(0.001)
        weights.running -= 1


def test_interleaved_requests_swap_once_a_group():
    async def scenario():
        weights = Weights()
        slot = AdapterSlot(weights.swap, "base")
        await asyncio.gather(*[request(slot, weights, f"a{i % 3}") for i in range(60)])
        return weights.swaps

    assert asyncio.run(scenario()) == ["a0", "a1", "a2"]


def test_no_adapter_starves_behind_a_steady_stream():
    async def scenario():
        weights = Weights()
        slot = AdapterSlot(weights.swap, "base")
        order = []

        async def one(adapter, delay):
            await asyncio.sleep(delay)
            await request(slot, weights, adapter)
            order.append(adapter)

        await asyncio.gather(*[one("base", 0.001 * i) for i in range(40)], one("late", 0.005))
        return order

    order = asyncio.run(scenario())
    assert order.index("late") < 30


def test_a_failed_swap_fails_its_request_alone():
    async def scenario():
        weights = Weights()
        slot = AdapterSlot(weights.swap, "base")
        return await asyncio.gather(
            *[request(slot, weights, name) for name in ("base", "broken", "a1", "base")], return_exceptions=True
        )

    results = asyncio.run(scenario())
    assert [type(r) for r in results] == [type(None), OSError, type(None), type(None)]


def test_a_cancelled_waiter_blocks_nobody():
    async def scenario():
        weights = Weights()
        slot = AdapterSlot(weights.swap, "base")
        running = asyncio.create_task(request(slot, weights, "base"))
        await asyncio.sleep(0)
        waiter = asyncio.create_task(request(slot, weights, "a1"))
        await asyncio.sleep(0)
        waiter.cancel()
        await asyncio.wait_for(asyncio.gather(running, request(slot, weights, "base"), request(slot, weights, "a2")), 5)

    asyncio.run(scenario())
