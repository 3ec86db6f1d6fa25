"""A run's events and progress as they come: from Redis where the run's is within reach, else from its directory.

Whoever joins late, or again after a lost connection, names the last segment that it has seen: what came since is read
from events/*.jsonl, which has every event. Redis adds speed alone, so losing it loses none.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import anyio
import redis

from actors.telemetry.event_files import last_segment, read_entries
from actors.telemetry.live_state import LiveState, read_live
from actors.telemetry.live_view import LiveView
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import is_remote

WAIT_S = 0.5
WAIT_REMOTE_S = 5.0
PORTION = 500
"""Events that are read from storage at once."""
ONLOOKERS = anyio.CapacityLimiter(64)
"""They wait in threads; further ones take turns."""
PAUSE_S = 5.0
"""Before a Redis that did not answer is asked again."""

Message = tuple[str, dict[str, Any]]


@dataclass
class Follower:
    """One onlooker of one run. `after` is the last segment that it has seen."""

    run: RunDirectory
    after: int
    view: LiveView | None = None
    _now: dict[str, Any] = field(default_factory=dict)
    _not_before: float = 0.0

    @classmethod
    async def join(cls, run: RunDirectory, after: int | None, view: LiveView | None) -> Follower:
        """`after` None: from now on."""
        return cls(run, await _in_thread(last_segment, run.events) if after is None else after, view)

    async def messages(self) -> AsyncIterator[Message]:
        """("event", an event with its segment) and ("now", the stage in hand and its progress), without end."""
        while True:
            mark = await self._newest()  # before storage is read, so that nothing falls between the two
            async for message in self._stored():
                yield message
            if mark is None:
                await anyio.sleep(WAIT_REMOTE_S if is_remote(self.run.root) else WAIT_S)
            else:
                async for message in self._from_redis(mark):
                    yield message

    async def _stored(self) -> AsyncIterator[Message]:
        entries = None
        while entries is None or len(entries) >= PORTION:
            entries, last = await _in_thread(read_entries, self.run.events, self.after, PORTION)
            for entry in entries:
                yield "event", entry
            self.after = last
        for message in self._changed(await _in_thread(read_live, self.run)):
            yield message

    async def _from_redis(self, mark: str) -> AsyncIterator[Message]:
        """Until Redis does not answer."""
        assert self.view is not None
        while True:
            entries = await self._asked(self.view.events, mark, WAIT_S)
            if entries is None:
                return
            for mark, entry in entries:  # noqa: B007  (the next look begins there)
                if entry["segment"] > self.after:
                    self.after = entry["segment"]
                    yield "event", entry
            for message in self._changed(await self._asked(self.view.state) or LiveState()):
                yield message

    def _changed(self, live: LiveState) -> list[Message]:
        now = live.progress_json() | {"alive": live.alive}
        if now == self._now:
            return []
        self._now = now
        return [("now", now)]

    async def _newest(self) -> str | None:
        if self.view is None or anyio.current_time() < self._not_before:
            return None
        newest: str | None = await self._asked(self.view.newest)
        return newest

    async def _asked(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Redis's answer, or None where it gives none."""
        try:
            return await _in_thread(call, *arguments)
        except (redis.RedisError, OSError):
            self._not_before = anyio.current_time() + PAUSE_S
            return None


async def _in_thread(call: Callable[..., Any], *arguments: Any) -> Any:
    return await anyio.to_thread.run_sync(call, *arguments, limiter=ONLOOKERS)
