"""One adapter at a time in the engine's weights: requests wait by adapter, a swap serves a whole group."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import count
from typing import Generic, TypeVar

Prepared = TypeVar("Prepared")
Ticket = tuple[int, int]
"""Priority and order of arrival: the smallest goes first."""


class AdapterSlot(Generic[Prepared]):
    """Lets requests of the loaded adapter run together, drains, then swaps for the next group.

    A swap prepares (whose failure leaves the weights as they were) and then loads.

    Groups go in the order of their first request, lower priority numbers first. A swap admits every request for its
    adapter that was waiting by then; later ones join only while no other adapter waits before them, so that no group
    of a priority starves.
    """

    def __init__(
        self, prepare: Callable[[str], Awaitable[Prepared]], load: Callable[[Prepared], Awaitable[None]], loaded: str
    ):
        self._prepare = prepare
        self._load = load
        self._loaded: str | None = loaded
        self.last_swap_s: float | None = None
        """Seconds that the last swap took, with what prepared it."""
        self._running = 0
        self._waiting: dict[Ticket, str] = {}
        self._arrivals = count()
        self._admitted_until = -1
        self._changed = asyncio.Condition()

    @property
    def loaded(self) -> str | None:
        """None while a swap is under way, or after one that failed halfway."""
        return self._loaded

    @asynccontextmanager
    async def hold(self, adapter: str, priority: int = 0) -> AsyncIterator[None]:
        """Runs its body while `adapter` is in the weights. A failed swap raises here, for this request alone."""
        await self._enter(adapter, priority)
        try:
            yield
        finally:
            await self._leave()

    @asynccontextmanager
    async def hold_loaded(self) -> AsyncIterator[str]:
        """Runs its body with whichever adapter is in the weights, and yields its name."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._loaded is not None)
            assert self._loaded is not None
            loaded = self._loaded
            self._running += 1
        try:
            yield loaded
        finally:
            await self._leave()

    async def _enter(self, adapter: str, priority: int) -> None:
        # Taken before the lock: a swap holds it, and must see who arrives meanwhile.
        ticket = (priority, next(self._arrivals))
        self._waiting[ticket] = adapter
        try:
            async with self._changed:
                await self._changed.wait_for(lambda: self._may_join(ticket) or self._may_swap(ticket))
                if self._loaded != adapter:
                    began = time.monotonic()
                    prepared = await self._prepare(adapter)
                    self._loaded = None
                    await self._load(prepared)
                    self._loaded = adapter
                    self.last_swap_s = time.monotonic() - began
                    self._admitted_until = max(arrival for _, arrival in self._waiting)
                self._running += 1
        finally:
            del self._waiting[ticket]
            await self._wake()

    async def _leave(self) -> None:
        async with self._changed:
            self._running -= 1
            self._changed.notify_all()

    async def _wake(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _may_join(self, ticket: Ticket) -> bool:
        if self._waiting[ticket] != self._loaded:
            return False
        return ticket[1] <= self._admitted_until or all(
            adapter == self._loaded for other, adapter in self._waiting.items() if other < ticket
        )

    def _may_swap(self, ticket: Ticket) -> bool:
        return self._running == 0 and ticket == min(self._waiting)
