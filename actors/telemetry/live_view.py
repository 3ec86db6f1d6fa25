"""What is live about a run, in Redis: a capped stream of its events, its latest state, its coordinator's lease.

No result depends on it. A server that is away, slow or wiped costs the view alone: a call that fails is dropped, and
the next is made after a pause. The truth about events is events/*.jsonl, about the coordinator the journal.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import Any

import redis
import redis.asyncio

from actors.telemetry.event_types import Entry, LoggedEvent
from actors.telemetry.live_state import LiveState

STREAM_LENGTH = 10_000
LEASE_MS = 20_000
TIMEOUT_S = 1.0
PAUSE_S = 5.0
USERNAME, PASSWORD = "PROXYKD_REDIS_USERNAME", "PROXYKD_REDIS_PASSWORD"


def connect(url: str) -> redis.Redis:
    """Returns a client that waits at most a second. User and password of one's own server are the environment's."""
    return redis.Redis.from_url(url, **_options(url))


def connect_async(url: str) -> redis.asyncio.Redis:
    """Returns such a client for an event loop."""
    return redis.asyncio.Redis.from_url(url, **_options(url))


def _options(url: str) -> dict[str, Any]:
    credentials = {"username": os.environ.get(USERNAME), "password": os.environ.get(PASSWORD)}
    given = {name: value for name, value in credentials.items() if value} if "@" not in url else {}
    return {"socket_timeout": TIMEOUT_S, "socket_connect_timeout": TIMEOUT_S, "decode_responses": True, **given}


class LiveView:
    """One run's keys: proxykd:<run>:events, :state and :lease."""

    def __init__(self, run_id: str, url: Callable[[], str]):
        """`url` is asked again after every failure: an embedded server may have come back elsewhere."""
        self._prefix = f"proxykd:{run_id}"
        self._url = url
        self._client: redis.Redis | None = None
        self._not_before = 0.0

    def publish(self, logged: LoggedEvent) -> None:
        """Adds an event to the stream, which keeps about the last 10,000."""
        line = json.dumps(logged.entry(), default=str)
        self._try(lambda c: c.xadd(f"{self._prefix}:events", {"event": line}, maxlen=STREAM_LENGTH, approximate=True))

    def show(self, state: LiveState) -> None:
        """Replaces the latest state."""
        line = json.dumps(state.to_json(), default=str)
        self._try(lambda c: c.set(f"{self._prefix}:state", line))

    def hold_lease(self, epoch: int) -> None:
        """Says for the next 20 s which coordinator is at work: a hint for onlookers. The journal decides."""
        self._try(lambda c: c.set(f"{self._prefix}:lease", epoch, px=LEASE_MS))

    def newest(self) -> str:
        """Returns the id of the stream's newest event, or "0".

        Raises:
            redis.RedisError: the server does not answer.
        """
        entries: Any = self._connected().xrevrange(f"{self._prefix}:events", count=1)
        return str(entries[0][0]) if entries else "0"

    def events(self, after: str = "0", wait_s: float | None = None) -> list[tuple[str, Entry]]:
        """Returns id and entry of each event after id `after`; where there is none, waits for one, less than TIMEOUT_S.

        Raises:
            redis.RedisError: the server does not answer.
        """
        wait_ms = None if wait_s is None else int(1000 * wait_s)
        found: Any = self._connected().xread({f"{self._prefix}:events": after}, block=wait_ms)
        return [(entry_id, json.loads(fields["event"])) for _, entries in found or () for entry_id, fields in entries]

    def state(self) -> LiveState:
        """Returns the latest state, an empty one where the server has none.

        Raises:
            redis.RedisError: the server does not answer.
        """
        text: Any = self._connected().get(f"{self._prefix}:state")
        return LiveState.from_json(json.loads(text)) if text else LiveState()

    def lease(self) -> int | None:
        """Returns the epoch of the coordinator that holds the run, or None.

        Raises:
            redis.RedisError: the server does not answer.
        """
        epoch: Any = self._connected().get(f"{self._prefix}:lease")
        return int(epoch) if epoch else None

    def _try(self, call: Callable[[redis.Redis], Any]) -> None:
        if time.monotonic() < self._not_before:
            return
        try:
            call(self._connected())
        except (redis.RedisError, OSError):
            self._client = None
            self._not_before = time.monotonic() + PAUSE_S

    def _connected(self) -> redis.Redis:
        if self._client is None:
            self._client = connect(self._url())
        return self._client
