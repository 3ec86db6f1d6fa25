"""Requests by adapter around one set of weights: who waits, who joins, and who goes first."""

from __future__ import annotations

import asyncio

import pytest

from actors.adapter_slot import AdapterSlot

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
