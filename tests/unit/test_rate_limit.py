"""The rate limit by arithmetic alone: ten minutes of a provider's limits, on a clock that the test moves."""

from __future__ import annotations

import heapq
import random

import pytest

from proxykd.collection.rate_limit import LocalRateLimit, RateLimitState, Slots
from tests.teacher_stub import Limiter, Settings

MINUTES = 10


def ten_minutes(state: RateLimitState, settings: Settings, latency_s: float = 0.5) -> list[tuple[float, bool]]:
    """(when, accepted) of every request that the rate limit lets go."""
    limiter = Limiter(settings, 0.0)
    draw = random.Random(5)
    seen: list[tuple[float, bool]] = []
    answers: list[tuple[float, float, float]] = []  # when it is back, when it was sent, seconds to wait (0: accepted)

    def take_answers(until: float) -> None:
        while answers and answers[0][0] <= until:
            back, sent, wait = heapq.heappop(answers)
            if wait:
                state.limited(back, sent, wait if settings.names_retry_after else None)
            else:
                state.answered(back, sent)

    now = 0.0
    while now < 60.0 * MINUTES:
        at = state.acquire(now, 0.0)
        while len(answers) >= 64 and answers[0][0] > at:  # in flight at most
            at = answers[0][0]
            take_answers(at)
        take_answers(at)
        now = max(now, at)
        wait = limiter.wait(now)
        seen.append((now, not wait))
        heapq.heappush(answers, (now + latency_s * draw.uniform(0.5, 1.5), now, wait))
    return seen


@pytest.mark.parametrize("window", ["bucket", "fixed", "sliding"])
@pytest.mark.parametrize("per_minute", [60, 600, 3000])
@pytest.mark.parametrize(("named", "retry_after"), [(True, True), (False, True), (False, False)])
def test_it_keeps_95_percent_of_the_limit_with_one_429_in_a_hundred(window, per_minute, named, retry_after):
    """The limit is in the config (or a header), or has to be learned from 429s with or without Retry-After.

    Learned at one a second it is a little worse: a single 429 is a large part of what there is to learn from.
    """
    state = RateLimitState()
    if named:
        state.limits(per_minute, None)
    settings = Settings(requests_per_minute=per_minute, window=window, names_retry_after=retry_after)
    later = [accepted for at, accepted in ten_minutes(state, settings) if at >= 60.0]
    kept, refused = (0.95, 0.01) if named or per_minute > 60 else (0.94, 0.02)
    assert sum(later) >= kept * per_minute * (MINUTES - 1)
    assert later.count(False) <= refused * len(later)


def test_tokens_hold_it_back_too_and_what_was_guessed_wrong_is_made_good():
    state = LocalRateLimit(None, 6000).state  # 98.5 a second
    turns = [state.acquire(0.0, 98.5) for _ in range(5)]
    assert turns == pytest.approx([0.0, 1.0, 2.0, 3.0, 4.0])
    state.correct(98.5)
    assert state.acquire(0.0, 98.5) == pytest.approx(6.0)


def test_429s_of_requests_that_were_under_way_teach_once():
    state = RateLimitState()
    for n in range(100):
        state.acquire(50.0 + n * 0.1, 0)
        state.answered(50.0 + n * 0.1, 50.0 + n * 0.1)
    state.limited(60.0, 59.9, None)
    once = state.requests_per_s
    assert once == pytest.approx(0.97 * 100 / 10.0)
    state.limited(60.1, 59.95, None)
    assert state.requests_per_s == once


def test_the_state_survives_its_way_through_redis():
    state = RateLimitState()
    state.acquire(5.0, 10.0)
    state.answered(6.0, 5.0)
    assert RateLimitState.from_json(state.to_json()) == state


def test_slots_grow_with_answers_and_halve_once_an_overload():
    slots = Slots(20, first=8)
    slots.in_flight = 8
    for _ in range(40):
        slots.in_flight = int(slots.allowed)
        slots.well()
    assert slots.allowed == 20
    slots.overload(sent=10.0, now=11.0)
    slots.overload(sent=10.5, now=11.1)
    assert slots.allowed == 10
    slots.overload(sent=12.0, now=12.5)
    assert slots.allowed == 5
