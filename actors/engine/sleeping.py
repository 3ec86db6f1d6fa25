"""An engine that sleeps while others have its devices: nobody is within when it falls asleep, nor before it wakes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from proxykd.errors import EngineError


class Door:
    """Lets requests in while the engine is awake."""

    def __init__(self) -> None:
        self._open = True
        self._within = 0
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def within(self) -> AsyncIterator[None]:
        """Runs its body before the engine may fall asleep.

        Raises:
            EngineError: it sleeps, or is about to.
        """
        if not self._open:
            raise EngineError("the engine sleeps while the run trains; ask again in the next round")
        self._within += 1
        try:
            yield
        finally:
            async with self._changed:
                self._within -= 1
                self._changed.notify_all()

    async def close(self, fall_asleep: Callable[[], Awaitable[None]]) -> None:
        """Waits for those within, then `fall_asleep`; nothing where it sleeps already."""
        if self._open:
            self._open = False
            async with self._changed:
                await self._changed.wait_for(lambda: self._within == 0)
            await fall_asleep()

    async def open(self, wake_up: Callable[[], Awaitable[object]]) -> None:
        if not self._open:
            await wake_up()
            self._open = True
