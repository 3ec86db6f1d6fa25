"""One rate limit for many workers, on whatever machines: its state lies in Redis, its arithmetic is RateLimitState's.

Every step is a transaction (WATCH, MULTI, EXEC), by the server's own clock. While the server is away a worker goes on
alone with its share of what was known; when it is back, empty or not, the shared state is there again.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import redis

from actors.telemetry.live_view import connect_async
from proxykd.collection.rate_limit import RateLimitState
from proxykd.config import TeacherConfig

PAUSE_S = 2.0
"""Between two looks whether a server that was away is back."""
FORGET_S = 600
T = TypeVar("T")


def rate_limit_name(teacher: TeacherConfig, key: str) -> str:
    """Who shares a limit: the account and the model at an address. The account's key does not show."""
    account = hashlib.sha256(f"{key}\n{teacher.provider}\n{teacher.base_url}\n{teacher.model}".encode()).hexdigest()
    return f"proxykd:pace:{account[:16]}"


class SharedRateLimit:
    """The rate limit `name` on the server at `url`, of `workers` that send at the same time."""

    def __init__(
        self, url: str, name: str, workers: int, requests_per_minute: float | None, tokens_per_minute: float | None
    ):
        self._client = connect_async(url)
        self._name = name
        self._workers = workers
        self._known = RateLimitState()
        self._known.limits(requests_per_minute, tokens_per_minute)
        self._alone: RateLimitState | None = None
        self._away_until = 0.0
        self._offset = 0.0
        self._one_at_a_time = asyncio.Lock()

    def now(self) -> float:
        """The server's clock, as of the last answer."""
        return time.time() + self._offset

    async def acquire(self, tokens: float) -> float:
        return await self._step(lambda state, now: state.acquire(now, tokens) - now)

    async def answered(self, sent: float, tokens_off: float) -> None:
        def step(state: RateLimitState, now: float) -> None:
            state.correct(tokens_off)
            state.answered(now, sent)

        await self._step(step)

    async def limited(self, sent: float, retry_after: float | None) -> None:
        await self._step(lambda state, now: state.limited(now, sent, retry_after))

    async def limits(self, requests_per_minute: float | None, tokens_per_minute: float | None) -> None:
        if (requests_per_minute, tokens_per_minute) != (None, None):
            await self._step(lambda state, _: state.limits(requests_per_minute, tokens_per_minute))

    async def _step(self, step: Callable[[RateLimitState, float], T]) -> T:
        if time.monotonic() >= self._away_until:
            try:
                async with self._one_at_a_time:
                    result = await self._shared(step)
                self._alone = None
                return result
            except (redis.RedisError, OSError):
                self._away_until = time.monotonic() + PAUSE_S
        if self._alone is None:
            known = self._known
            self._alone = replace(
                known,
                requests_per_s=known.requests_per_s / self._workers,
                tokens_per_s=known.tokens_per_s / self._workers,
                accepted={},
            )
        return step(self._alone, self.now())

    async def _shared(self, step: Callable[[RateLimitState, float], T]) -> T:
        async with self._client.pipeline(transaction=True) as pipe:
            while True:
                await pipe.watch(self._name)
                seconds, microseconds = await pipe.time()
                held = await pipe.get(self._name)
                now = seconds + microseconds / 1e6
                self._offset = now - time.time()
                state = RateLimitState.from_json(str(held) if held else self._known.to_json())
                result = step(state, now)
                pipe.multi()  # type: ignore[no-untyped-call]
                pipe.set(self._name, state.to_json(), ex=FORGET_S)
                try:
                    await pipe.execute()
                except redis.WatchError:  # another worker was first
                    continue
                self._known = state
                return result
