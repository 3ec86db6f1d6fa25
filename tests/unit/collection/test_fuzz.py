"""Answers, errors and configs that nobody thought of: a Reply, a Failure or a ProxykdError comes out, and no other.

FUZZ=10000 python -m pytest tests/unit/collection/test_fuzz.py tries that many of each.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from proxykd.collection.collector import Collector
from proxykd.collection.dataset import Dataset, content_digest
from proxykd.collection.failures import Failure, Transient, body_of, failure_of, retry_after
from proxykd.collection.habits import ENDINGS
from proxykd.collection.job import Collection
from proxykd.collection.providers import Limits, _count
from proxykd.collection.rate_limit import LocalRateLimit
from proxykd.collection.replies import answer_of, parse_chat, parse_message
from proxykd.collection.requests import Reply, Request
from proxykd.config import load_collect_config, load_config
from proxykd.errors import ProxykdError
from proxykd.study.studies import load_study
from proxykd.text.corpus import Record
from tests.collecting import config_for, rows_of
from tests.fuzzing import EXAMPLES, FUZZED, mutated
from tests.provider_habits import ANSWERS, ERRORS_IN_PLACE, REFUSALS, as_events
from tests.teacher_stub import RunningStub, Settings, chat_completion, message

CONFIGS = Path(__file__).parents[3] / "configs"
QUESTION = {"messages": [{"role": "user", "content": "What is it?"}], "logprobs": True, "seed": 1}


def _chats() -> list[Any]:
    good = chat_completion(QUESTION, "stub-1", Settings(logprobs=True), "amber birch cedar")
    changed = [copy.deepcopy(good) for _ in ANSWERS]
    for answer, change in zip(changed, ANSWERS.values(), strict=True):
        change(answer)
    return [good, *changed, *ERRORS_IN_PLACE.values()]


CHATS = _chats()
MESSAGES = [
    message(QUESTION, "stub-1", Settings(), "amber birch cedar"),
    {"type": "error", "error": {"type": "overloaded_error"}},
]
ERRORS = [body for _, body, _ in REFUSALS.values()]


def _is_reply(reply: Reply) -> None:
    assert reply.finish_reason in ENDINGS
    assert isinstance(reply.text, str)
    assert reply.model
    for count in (reply.prompt_tokens, reply.completion_tokens):
        assert count is None or 0 <= count < 2**31
    json.dumps(asdict(reply), allow_nan=False)


@FUZZED
@given(mutated(CHATS))
def test_a_chat_completion_is_a_reply_or_a_failure(answer):
    with contextlib.suppress(Failure):
        _is_reply(parse_chat(answer, "asked"))


@FUZZED
@given(mutated(MESSAGES))
def test_a_message_is_a_reply_or_a_failure(answer):
    with contextlib.suppress(Failure):
        _is_reply(parse_message(answer, "asked"))


@FUZZED
@given(st.one_of(st.none(), st.integers(300, 600)), mutated(ERRORS), st.text(max_size=20))
def test_an_error_is_a_failure_that_can_be_printed(status, body, header):
    headers = {"retry-after": header, "retry-after-ms": header, "x": header}
    failure = failure_of(status, {"retry-after": header}, body)
    assert isinstance(failure, Failure)
    assert str(failure).encode()
    assert (seconds := retry_after(headers)) is None or seconds >= 0
    assert (count := _count(headers, "x")) is None or count > 0


@st.composite
def responses(draw: Any) -> tuple[int, str, bytes]:
    """HTTP status, content type and body, as a provider, a gateway or a torn connection sends them."""
    status = draw(st.sampled_from([200] * 6 + [s for s, _, _ in REFUSALS.values()] + [301, 500, 529]))
    value = draw(mutated(CHATS if status == 200 else ERRORS))
    data = json.dumps(value).encode()
    kind = draw(st.sampled_from(["application/json", "text/html", "text/event-stream"]))
    if kind == "text/event-stream" and draw(st.booleans()):
        data = as_events(CHATS[0])
    match draw(st.sampled_from(["whole"] * 6 + ["cut", "noise", "deep"])):
        case "cut":
            data = data[: draw(st.integers(0, len(data)))]
        case "noise":
            data = draw(st.binary(max_size=60))
        case "deep":
            data = b"[" * 100_000
    return status, kind, data


class Canned:
    """A provider whose answers over HTTP are given."""

    def __init__(self, given: list[tuple[int, str, bytes]]):
        self._given = given

    def holds(self, key: str) -> bool:
        return False

    async def complete(self, request: Request) -> tuple[Reply, Limits]:
        status, kind, data = self._given[request.sample % len(self._given)]
        response = SimpleNamespace(headers={"content-type": kind}, content=data, text=data.decode(errors="replace"))
        if status != 200:
            raise failure_of(status, {}, body_of(response))
        return parse_chat(answer_of(response), "asked"), Limits()

    async def close(self) -> None: ...


@settings(FUZZED, max_examples=max(1, EXAMPLES // 3))
@given(st.lists(responses(), min_size=1, max_size=12))
def test_a_data_set_of_whatever_comes_is_whole_or_says_why_not(given):
    config = config_for(
        RunningStub(9), {"samples": len(given)}, max_retries=0, max_failed_share=0.99, give_up_after_s=0.5
    )
    prompt = Record(id="p", messages=({"role": "user", "content": "What is it?"},), completion="")
    with tempfile.TemporaryDirectory() as folder:
        collection = Collection(folder, config, [prompt])
        collection.begin()
        outcome = asyncio.run(_collected(collection, Canned(given)))
        summary = collection.conclude(outcome)
        if not isinstance(outcome.stop, (ProxykdError, type(None))):
            raise outcome.stop
        rows = rows_of(Path(folder) / "records") + rows_of(Path(folder) / "apart")
        assert summary["records"] + sum(summary["dropped"].values()) == len(rows)
        if outcome.stop is None:
            assert len(rows) + len(outcome.failed) == len(given)
        # What was paid for is read back by the next start, which writes the same.
        again = Collection(folder, config, [prompt])
        assert len(again.kept.replies) == len(collection.kept.replies)
        if outcome.stop is None:
            before = content_digest(folder)
            assert asyncio.run(_collected(again, Canned(given))).stop is None or outcome.failed
            assert content_digest(folder) == before or outcome.failed


async def _collected(collection: Collection, provider: Canned) -> Any:
    limit = LocalRateLimit(None, None)
    collector = Collector(
        Dataset(collection.dataset.root), collection.config, collection.chunks, collection.writer, collection.kept,
        provider, limit, lambda progress: None,
    )  # fmt: skip
    return await collector.run()


SHIPPED = [(path, yaml.safe_load(path.read_text())) for path in sorted(CONFIGS.glob("*.yaml"))]
LOADERS = (load_config, load_collect_config, load_study)


@FUZZED
@given(mutated([raw for _, raw in SHIPPED]), st.sampled_from(LOADERS))
def test_a_config_of_other_values_is_one_or_says_why_not(raw, load):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.yaml"
        path.write_text(json.dumps(raw) if isinstance(raw, (dict, list)) else str(raw), errors="surrogatepass")
        with contextlib.suppress(ProxykdError):
            load(path)


@FUZZED
@given(st.data(), st.sampled_from(LOADERS))
def test_a_config_of_other_bytes_is_one_or_says_why_not(data, load):
    text = data.draw(st.sampled_from(SHIPPED))[0].read_bytes()
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        more = data.draw(
            st.binary(max_size=4) | st.sampled_from([b"\n", b"\t", b": ", b"- ", b"&a ", b"*a", b"!!int ", b"'"])
        )
        text = text[:at] + more + text[at + data.draw(st.integers(0, 3)) :]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.yaml"
        path.write_bytes(text)
        with contextlib.suppress(ProxykdError):
            load(path)


@FUZZED
@given(st.text(max_size=20), st.text(st.characters(exclude_categories=()), max_size=20))
def test_an_override_of_whatever_is_taken_or_refused(key, value):
    for override in (f"{key}={value}", f"teacher.system={value}"):
        with contextlib.suppress(ProxykdError):
            load_config(CONFIGS / "quickstart.yaml", (override,))


def test_the_fuzz_finds_what_is_broken():
    """It would be worth nothing if it never got past the first check."""
    with pytest.raises(Transient, match="no chat completion"):
        parse_chat({"choices": [{"message": {"content": 7}, "finish_reason": "stop"}]}, "m")
    assert parse_chat(CHATS[0], "m").top_logprobs is not None
