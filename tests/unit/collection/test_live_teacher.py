"""One question to the teacher at a time of need: the budget holds whoever asks at once, leaves, or dies."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from proxykd.collection.budget import worst_case
from proxykd.collection.live.teacher import PATIENCE_S, TeacherOnTheLine, Unanswered
from proxykd.collection.response_log import read_log
from tests.collecting import config_for
from tests.teacher_stub import teacher_stub

PROMPT = ({"role": "user", "content": "What is the colour of item 5?"},)


async def ask(teacher, text="x", most=None):
    try:
        return (await teacher.answer([{"role": "user", "content": text}], most)).model
    except Unanswered as reason:
        return reason.why


def test_the_budget_holds_when_all_ask_at_once(tmp_path):
    with teacher_stub(latency_s=0.1) as stub:

        async def all_at_once():
            teacher = TeacherOnTheLine(config_for(stub, budget={"tokens": 400}), tmp_path, 5.0)
            found = [await asyncio.gather(*[ask(teacher, f"item {i}") for i in range(12)]) for _ in range(3)]
            await teacher.close()
            return [Counter(one) for one in found]

        first, *_, last = asyncio.run(all_at_once())
        stats = stub.stats()
    assert first["stub-1"] == 400 // (2 * 32 + 32 + len("item 0"))  # each at its worst, bytes and limits
    assert first["budget"] == 12 - first["stub-1"]
    assert last["budget"] == 12 - last["stub-1"]
    assert stats["tokens"] <= 400
    assert read_log(tmp_path).usage.tokens == stats["tokens"]


def test_who_leaves_has_paid_at_most_and_the_next_start_knows(tmp_path):
    with teacher_stub(latency_s=5.0) as stub:
        config = config_for(stub, budget={"tokens": 1_000})

        async def leave():
            teacher = TeacherOnTheLine(config, tmp_path, 60.0)
            task = asyncio.create_task(teacher.answer(list(PROMPT), 7))
            await asyncio.sleep(0.5)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            request = teacher._request(PROMPT, 7)
            await teacher.close()
            return worst_case(request, 7)

        worst = asyncio.run(leave())
    assert worst.completion == 7
    kept = read_log(tmp_path)
    assert (kept.usage.tokens, kept.unanswered) == (0, worst)


def test_a_turn_that_is_far_off_is_not_waited_for(tmp_path):
    with teacher_stub() as stub:
        config = config_for(stub, requests_per_minute=20.0, budget={"tokens": 100_000})

        async def hurry():
            teacher = TeacherOnTheLine(config, tmp_path, 5.0)
            found = [await ask(teacher, f"item {i}") for i in range(3)]
            await asyncio.sleep(60 / 20)
            found.append(await ask(teacher))
            await teacher.close()
            return found

        assert PATIENCE_S < 60 / 20
        assert asyncio.run(hurry()) == ["stub-1", "pace", "pace", "stub-1"]  # who was turned away took nobody's turn
