"""How fast to send: requests and tokens a minute, learned from what the provider says and from its 429s.

The state is a few numbers, so that workers on many machines can share one
(actors/data/shared_rate_limit.py). All times are in seconds of one clock.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass, field
from typing import Protocol

MARGIN = 0.985
"""Of a limit that is known: the provider's clock and window are not ours."""
CATCH_UP_S = 0.25
"""What a late request may make up for by the next one's earlier turn."""
WINDOW_S = 60.0
FIRST_MINUTE_STEP, FIRST_MINUTE_EVERY_S = 0.1, 2.0
"""How fast a limit that the first 429s made look low is left again, while little is known."""
PROBE_AFTER, PROBE_AFTER_S = 100, 60.0
"""Accepted requests and seconds between two steps up from a limit that 429s have taught: a window shows no excess
before it is over."""
PROBE_STEP, PROBE_STEP_MOST = 0.02, 0.08
"""The first step; each further one without a 429 is twice as high."""
BACK_OFF = 0.97
SINGLE_CUT = 0.85
"""What is left of a learned limit after one 429, at least: idle time makes a limit look lower than it is."""
PAUSE_S, PAUSE_MOST_S = 1.0, 15.0
"""After a 429 that names no Retry-After, doubled while nothing is accepted."""


@dataclass
class RateLimitState:
    """The next free turn, and what is known of the limit.

    `requests_per_s` is infinite until a config, a header or a 429 names a limit. `learned` marks one that 429s taught,
    which is tried anew, a little higher, now and then.
    """

    requests_per_s: float = math.inf
    tokens_per_s: float = math.inf
    learned: bool = False
    next_request: float = 0.0
    next_tokens: float = 0.0
    limited_at: float = 0.0
    began: float = 0.0
    stepped_at: float = 0.0
    since_step: int = 0
    step: float = PROBE_STEP
    pause: float = PAUSE_S
    span: float = WINDOW_S
    ceiling: float = math.inf
    accepted: dict[str, int] = field(default_factory=dict)

    def acquire(self, now: float, tokens: float) -> float:
        """Takes the next turn for a request of about `tokens` tokens; returns when it is."""
        self.began = self.began or now
        at = max(now, self.next_request, self.next_tokens)
        floor = now - CATCH_UP_S
        self.next_request = max(self.next_request, floor) + 1.0 / self.requests_per_s
        self.next_tokens = max(self.next_tokens, floor) + tokens / self.tokens_per_s
        return at

    def correct(self, tokens: float) -> None:
        """A request took so many tokens more (or fewer) than its turn was for."""
        self.next_tokens += tokens / self.tokens_per_s

    def limits(self, requests_per_minute: float | None, tokens_per_minute: float | None) -> None:
        """Limits that a config or the provider's headers name."""
        if requests_per_minute is not None and not self.learned:
            self.requests_per_s = min(self.requests_per_s, MARGIN * requests_per_minute / 60.0)
        if tokens_per_minute is not None:
            self.tokens_per_s = min(self.tokens_per_s, MARGIN * tokens_per_minute / 60.0)

    def answered(self, now: float, sent: float) -> None:
        """A request that was sent at `sent` was accepted."""
        second = str(int(sent))
        if second not in self.accepted:
            self.accepted = {s: n for s, n in self.accepted.items() if float(s) > now - WINDOW_S}
        self.accepted[second] = self.accepted.get(second, 0) + 1
        self.since_step += 1
        self.pause = PAUSE_S
        if not self.learned:
            return
        if sent <= self.limited_at:
            # It was under way when the last 429 came, and stands in the window that this told of.
            self.requests_per_s = min(self.ceiling, self.requests_per_s + BACK_OFF / self.span)
        elif now - self.began < WINDOW_S:
            if now - self.stepped_at >= FIRST_MINUTE_EVERY_S:
                self.requests_per_s *= 1.0 + FIRST_MINUTE_STEP
                self.stepped_at = now
        elif self.since_step >= PROBE_AFTER and now - self.stepped_at >= PROBE_AFTER_S:
            self.since_step, self.stepped_at = 0, now
            if self._seen(now, WINDOW_S) >= 0.9 * WINDOW_S * self.requests_per_s:  # it is this that holds it back
                self.requests_per_s *= 1.0 + self.step
                self.step = min(PROBE_STEP_MOST, 2.0 * self.step)

    def limited(self, now: float, sent: float, retry_after: float | None) -> None:
        """A 429. The limit is what was accepted in the provider's window, which Retry-After tells the end of.

        Of requests that were sent before the last 429 had its effect, it says nothing new.
        """
        pause = self.pause if retry_after is None else retry_after
        self.next_request = max(self.next_request, now + pause)
        if sent <= self.limited_at:
            return
        if retry_after is None:
            self.pause = min(PAUSE_MOST_S, 2.0 * self.pause)
        ahead = min(WINDOW_S, retry_after or 0.0)
        self.span = max(1.0, min(WINDOW_S, now - self.began + ahead))
        limit = BACK_OFF * max(1, self._seen(now, WINDOW_S - ahead + 1.0)) / self.span  # counted by seconds
        if not self.learned:
            self.ceiling = self.requests_per_s
            self.requests_per_s = min(limit, self.ceiling)
        elif self.since_step == 0:  # nothing was accepted since the last one: it is still the same
            if now - self.began < WINDOW_S:
                self.requests_per_s = min(limit, self.requests_per_s)
        else:
            self.ceiling = BACK_OFF * self.requests_per_s
            self.requests_per_s = min(self.ceiling, max(SINGLE_CUT * self.requests_per_s, limit))
        self.limited_at = self.stepped_at = now
        self.since_step, self.step, self.learned = 0, PROBE_STEP, True

    def _seen(self, now: float, window: float) -> int:
        return sum(n for second, n in self.accepted.items() if float(second) > now - window)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> RateLimitState:
        return cls(**json.loads(text))


class RateLimit(Protocol):
    """When the next request may be sent, for one process or for many."""

    async def acquire(self, tokens: float) -> float:
        """Takes the next turn for a request of about `tokens` tokens; returns in how many seconds it is."""

    async def answered(self, sent: float, tokens_off: float) -> None:
        """A request sent at `sent` was accepted, and took `tokens_off` tokens more than its turn was for."""

    async def limited(self, sent: float, retry_after: float | None) -> None:
        """A request sent at `sent` got a 429, with Retry-After in seconds where the provider names it."""

    async def limits(self, requests_per_minute: float | None, tokens_per_minute: float | None) -> None:
        """Takes over limits that the provider's headers name."""

    def now(self) -> float:
        """Returns the clock of `sent`, in seconds."""


class LocalRateLimit:
    """The rate limit of one process alone."""

    def __init__(self, requests_per_minute: float | None, tokens_per_minute: float | None):
        self.state = RateLimitState()
        self.state.limits(requests_per_minute, tokens_per_minute)

    def now(self) -> float:
        return time.time()

    async def acquire(self, tokens: float) -> float:
        return self.state.acquire(now := self.now(), tokens) - now

    async def answered(self, sent: float, tokens_off: float) -> None:
        self.state.correct(tokens_off)
        self.state.answered(self.now(), sent)

    async def limited(self, sent: float, retry_after: float | None) -> None:
        self.state.limited(self.now(), sent, retry_after)

    async def limits(self, requests_per_minute: float | None, tokens_per_minute: float | None) -> None:
        self.state.limits(requests_per_minute, tokens_per_minute)


class Slots:
    """How many requests may be in flight: one more with every answer, half with every overload, never above `most`."""

    def __init__(self, most: int, first: int):
        self._most = most
        self.allowed = float(min(first, most))
        self.in_flight = 0
        self._halved_at = 0.0

    @property
    def free(self) -> bool:
        return self.in_flight < int(self.allowed)

    def well(self) -> None:
        """An answer, while the slots were what held the sending up."""
        if self.in_flight >= int(self.allowed) - 1:
            self.allowed = min(float(self._most), self.allowed + 1.0)

    def overload(self, sent: float, now: float) -> None:
        if sent > self._halved_at:
            self._halved_at = now
            self.allowed = max(1.0, self.allowed / 2)
