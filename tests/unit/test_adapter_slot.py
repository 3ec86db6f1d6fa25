"""Requests by adapter around one set of weights: who waits, who joins, and who goes first."""

from __future__ import annotations

import asyncio

import pytest

from actors.engine.adapter_slot import AdapterSlot

RUN, CLIENT = 0, 1


def played(script):
    """Runs `script(slot, ask, log)`; ask starts a request that holds its adapter until its event is set."""
    log: list[str] = []

    async def prepare(adapter: str) -> str:
        if adapter == "tampered":
            raise OSError("no such weights")
        return adapter

    async def load(adapter: str) -> None:
        log.append(f"swap {adapter}")
        await asyncio.sleep(0)
        if adapter == "broken":
            raise OSError("half loaded")

    async def main() -> None:
        slot = AdapterSlot(prepare, load, "a")
        tasks = []

        async def request(adapter: str, priority: int, end: asyncio.Event) -> None:
            async with slot.hold(adapter, priority):
                log.append(adapter)
                await end.wait()

        async def ask(adapter: str, priority: int = RUN) -> asyncio.Event:
            end = asyncio.Event()
            tasks.append(asyncio.create_task(request(adapter, priority, end)))
            for _ in range(20):
                await asyncio.sleep(0)
            return end

        await script(slot, ask, log)
        await asyncio.wait_for(asyncio.gather(*tasks), 5)

    asyncio.run(main())
    return log


def test_a_swap_serves_the_whole_group_that_waits():
    async def script(slot, ask, log):
        first = await ask("a")
        others = [await ask(adapter) for adapter in ("b", "a", "b")]
        assert log == ["a"]
        for end in (first, *others):
            end.set()

    assert played(script) == ["a", "swap b", "b", "b", "swap a", "a"]


def test_the_runs_requests_go_before_those_of_clients():
    async def script(slot, ask, log):
        first = await ask("a", CLIENT)
        waiting = [await ask("b", CLIENT), await ask("c", RUN)]
        late = await ask("a", CLIENT)
        assert log == ["a"]
        for end in (first, *waiting, late):
            end.set()

    assert played(script) == ["a", "swap c", "c", "swap b", "b", "swap a", "a"]


def test_the_runs_requests_join_their_loaded_adapter_past_waiting_clients():
    async def script(slot, ask, log):
        first = await ask("a", RUN)
        client = await ask("b", CLIENT)
        second = await ask("a", RUN)
        assert log == ["a", "a"]
        for end in (first, second, client):
            end.set()

    assert played(script) == ["a", "a", "swap b", "b"]


def test_a_probe_holds_whatever_is_loaded_and_keeps_a_swap_waiting():
    async def script(slot, ask, log):
        async with slot.hold_loaded() as loaded:
            assert loaded == "a"
            (await ask("b")).set()
            assert log == []

    assert played(script) == ["swap b", "b"]


def test_a_failed_swap_fails_its_request_alone():
    async def script(slot, ask, log):
        with pytest.raises(OSError, match="half loaded"):
            async with slot.hold("broken"):
                pass
        (await ask("a")).set()

    assert played(script) == ["swap broken", "swap a", "a"]


def test_what_cannot_be_prepared_leaves_the_weights_in_place():
    async def script(slot, ask, log):
        with pytest.raises(OSError, match="no such weights"):
            async with slot.hold("tampered"):
                pass
        async with slot.hold_loaded() as loaded:
            assert loaded == "a"
        (await ask("a")).set()

    assert played(script) == ["a"]


class Weights:
    """Records swaps and refuses one while a request runs."""

    def __init__(self):
        self.loaded, self.running, self.swaps = "base", 0, []

    async def prepare(self, adapter):
        return adapter

    async def swap(self, adapter):
        assert self.running == 0
        await asyncio.sleep(0.001)
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
        slot = AdapterSlot(weights.prepare, weights.swap, "base")
        await asyncio.gather(*[request(slot, weights, f"a{i % 3}") for i in range(60)])
        return weights.swaps

    assert asyncio.run(scenario()) == ["a0", "a1", "a2"]


def test_no_adapter_starves_behind_a_steady_stream():
    async def scenario():
        weights = Weights()
        slot = AdapterSlot(weights.prepare, weights.swap, "base")
        order = []

        async def one(adapter, delay):
            await asyncio.sleep(delay)
            await request(slot, weights, adapter)
            order.append(adapter)

        await asyncio.gather(*[one("base", 0.001 * i) for i in range(40)], one("late", 0.005))
        return order

    order = asyncio.run(scenario())
    assert order.index("late") < 30


def test_a_cancelled_waiter_blocks_nobody():
    async def scenario():
        weights = Weights()
        slot = AdapterSlot(weights.prepare, weights.swap, "base")
        running = asyncio.create_task(request(slot, weights, "base"))
        await asyncio.sleep(0)
        waiter = asyncio.create_task(request(slot, weights, "a1"))
        await asyncio.sleep(0)
        waiter.cancel()
        await asyncio.wait_for(asyncio.gather(running, request(slot, weights, "base"), request(slot, weights, "a2")), 5)

    asyncio.run(scenario())
