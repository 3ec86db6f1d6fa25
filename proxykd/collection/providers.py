"""The providers, each behind the same call: a Request goes in, a Reply or one of four kinds of failure comes out.

Their official clients make the requests; their own retries are off, since a retry counts against the rate limit and
the budget like any request.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from proxykd.collection.requests import Reply, Request
from proxykd.config import TeacherConfig
from proxykd.errors import ConfigError

Body = dict[str, Any]
KEYLESS = "none"
"""What the client sends to an endpoint that needs no key."""


class Limited(Exception):
    """Too many requests, and not charged. `retry_after` in seconds where the provider names it."""

    def __init__(self, message: str, retry_after: float | None):
        super().__init__(message)
        self.retry_after = retry_after


class Transient(Exception):
    """It may work the next time. `charged`: whether this one may have been."""

    def __init__(self, message: str, charged: bool, retry_after: float | None = None):
        super().__init__(message)
        self.charged = charged
        self.retry_after = retry_after


class Rejected(Exception):
    """This prompt will never be answered (too long, against a policy); others will."""


class Denied(Exception):
    """Nothing will be answered until somebody mends it: the key, the model's name, the account."""


@dataclass(frozen=True)
class Limits:
    """What the provider says it allows a minute, where it says so."""

    requests: int | None = None
    tokens: int | None = None


class Provider(Protocol):
    def holds(self, key: str) -> bool:
        """Whether this request was sent by an earlier process and its answer can still be had."""

    async def complete(self, request: Request) -> tuple[Reply, Limits]:
        """Sends one request and returns its reply, with the limits that the provider states (none: all None).

        Raises:
            Limited: HTTP 429. Nothing was charged.
            Transient: it may work the next time, and may have been charged.
            Rejected: this prompt will never be answered.
            Denied: nothing will be answered until somebody mends it.
        """

    async def close(self) -> None: ...


class OnlineProvider:
    """A provider that answers on the line, the whole answer within `deadline_s`: the clients' own timeouts are for each
    read, which a slow drip never meets."""

    def __init__(self, teacher: TeacherConfig, base_url: str | None, deadline_s: float):
        """Raises:
        ConfigError: no key where the provider needs one.
        """
        key = api_key(teacher)
        api = Anthropic if teacher.provider == "anthropic" else OpenAI
        self._api = api(teacher, base_url, key)
        self._deadline_s = deadline_s

    def holds(self, key: str) -> bool:
        return False

    async def complete(self, request: Request) -> tuple[Reply, Limits]:
        """Sends one request and returns its reply, with the limits that the provider states.

        Raises:
            Limited: HTTP 429. Nothing was charged.
            Transient: no whole answer within the deadline, or a failure that may pass.
            Rejected: this prompt will never be answered.
            Denied: nothing will be answered until somebody mends it.
        """
        try:
            async with asyncio.timeout(self._deadline_s):
                return await self._api.complete(request)
        except TimeoutError:
            raise Transient(f"no whole answer within {self._deadline_s:g} s", charged=True) from None

    async def close(self) -> None:
        await self._api.close()


def api_key(teacher: TeacherConfig) -> str:
    """Returns the key in the file or environment variable that the config names; KEYLESS where an endpoint of one's own
    has none.

    Raises:
        ConfigError: there is none, and the provider's own address needs one.
    """
    if teacher.api_key_file is not None:
        try:
            return Path(teacher.api_key_file).read_text().strip()
        except OSError as error:
            raise ConfigError(f"teacher.api_key_file {teacher.api_key_file}: {error.strerror}") from None
    if key := os.environ.get(teacher.key_variable, "").strip():
        return key
    if teacher.address is None and teacher.local is None:
        raise ConfigError(f"no API key: set ${teacher.key_variable}, or teacher.api_key_file to a file that holds it")
    return KEYLESS


class OpenAI:
    """Any OpenAI-compatible chat endpoint."""

    def __init__(self, teacher: TeacherConfig, base_url: str | None, key: str):
        import openai

        self._teacher = teacher
        self._failures = partial(failures, openai, key)
        self._client = openai.AsyncOpenAI(base_url=base_url, api_key=key, max_retries=0, timeout=None)

    async def complete(self, request: Request) -> tuple[Reply, Limits]:
        with self._failures():
            raw = await self._client.chat.completions.with_raw_response.create(**chat_body(self._teacher, request))
        limits = Limits(
            _count(raw.headers, "x-ratelimit-limit-requests"), _count(raw.headers, "x-ratelimit-limit-tokens")
        )
        return parse_chat(_json_of(raw.http_response)), limits

    async def close(self) -> None:
        await self._client.close()


class Anthropic:
    """Anthropic's Messages API. It takes no seed, and gives no log-probs away."""

    def __init__(self, teacher: TeacherConfig, base_url: str | None, key: str):
        import anthropic

        self._teacher = teacher
        self._failures = partial(failures, anthropic, key)
        self._client = anthropic.AsyncAnthropic(base_url=base_url, api_key=key, max_retries=0, timeout=None)

    async def complete(self, request: Request) -> tuple[Reply, Limits]:
        with self._failures():
            raw = await self._client.messages.with_raw_response.create(**message_body(self._teacher, request))
        limits = Limits(
            _count(raw.headers, "anthropic-ratelimit-requests-limit"),
            _count(raw.headers, "anthropic-ratelimit-output-tokens-limit"),
        )
        return parse_message(_json_of(raw.http_response)), limits

    async def close(self) -> None:
        await self._client.close()


def chat_body(teacher: TeacherConfig, request: Request) -> Body:
    """Returns OpenAI's JSON body for `request`; its batch API takes the same."""
    body: Body = {
        "model": teacher.model,
        "messages": list(request.messages),
        "max_tokens": teacher.max_tokens,
        "temperature": teacher.temperature,
        "seed": request.seed,
    }
    if teacher.top_p is not None:
        body["top_p"] = teacher.top_p
    if teacher.top_logprobs:
        body |= {"logprobs": True, "top_logprobs": teacher.top_logprobs}
    if teacher.max_tokens_field != "max_tokens":
        body[teacher.max_tokens_field] = body.pop("max_tokens")
    return body | ({"extra_body": teacher.extra_body} if teacher.extra_body else {})


def message_body(teacher: TeacherConfig, request: Request) -> Body:
    """Returns Anthropic's JSON body: the system message apart, sampling parameters where they are not the default."""
    system = [m["content"] for m in request.messages if m["role"] == "system"]
    body: Body = {
        "model": teacher.model,
        "messages": [m for m in request.messages if m["role"] != "system"],
        "max_tokens": teacher.max_tokens,
    }
    if system:
        body["system"] = "\n\n".join(system)
    # The client knows no sampling parameters, which newer models refuse; 1 is the API's own temperature.
    more: Body = {} if teacher.temperature == 1.0 else {"temperature": teacher.temperature}
    more |= {} if teacher.top_p is None else {"top_p": teacher.top_p}
    more |= teacher.extra_body
    return body | ({"extra_body": more} if more else {})


def parse_chat(answer: Any) -> Reply:
    """A chat completion's JSON.

    Raises:
        Transient: it is not one.
    """
    try:
        [choice, *_] = answer["choices"]
        usage = answer.get("usage") or {}
        text = choice["message"].get("content") or choice["message"].get("refusal") or ""
        refused = not choice["message"].get("content") and choice["message"].get("refusal")
        return Reply(
            text=_text(text),
            finish_reason="content_filter" if refused else str(choice["finish_reason"]),
            model=_text(answer["model"]),
            request_id=str(answer.get("id", "")),
            prompt_tokens=int(usage.get("prompt_tokens", 0)),
            completion_tokens=int(usage.get("completion_tokens", 0)),
            top_logprobs=_top_logprobs(choice),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Transient(f"the answer is no chat completion ({error!r}): {json.dumps(answer)[:200]}", True) from None


ANTHROPIC_REASONS = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length", "refusal": "content_filter"}


def parse_message(answer: Any) -> Reply:
    """A message's JSON, of Anthropic's Messages API.

    Raises:
        Transient: it is not one.
    """
    try:
        text = "".join(_text(block["text"]) for block in answer["content"] if block["type"] == "text")
        return Reply(
            text=text,
            finish_reason=ANTHROPIC_REASONS.get(answer["stop_reason"], str(answer["stop_reason"])),
            model=_text(answer["model"]),
            request_id=str(answer.get("id", "")),
            prompt_tokens=int(answer["usage"]["input_tokens"]),
            completion_tokens=int(answer["usage"]["output_tokens"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Transient(f"the answer is no message ({error!r}): {json.dumps(answer)[:200]}", True) from None


@contextlib.contextmanager
def failures(sdk: ModuleType, key: str) -> Iterator[None]:
    """What the client `sdk` (openai or anthropic: both were made by one generator) raises, as one of the four kinds.

    Raises:
        Limited: HTTP 429.
        Transient: no connection, a timeout or HTTP 5xx.
        Rejected: another HTTP 4xx.
        Denied: HTTP 401, 402, 403, 404, or a quota that is used up.
    """
    try:
        yield
    except sdk.APIStatusError as error:
        raise failure_of(error.status_code, error.response.headers, _said(error, key)) from None
    except sdk.APIConnectionError as error:
        raise Transient(_scrub(str(error.__cause__ or error), key), charged=True) from None


def failure_of(status: int, headers: Mapping[str, str], said: str) -> Exception:
    """Returns the error that an HTTP status stands for: Denied, Limited, Transient or Rejected."""
    message = f"HTTP {status}: {said}"
    if status in (401, 402, 403, 404) or (status == 429 and "insufficient_quota" in said):
        return Denied(message)
    if status == 429:
        return Limited(message, retry_after(headers))
    if status in (408, 409, 425) or status >= 500:
        return Transient(message, charged=status == 408, retry_after=retry_after(headers))
    return Rejected(message)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, from `retry-after-ms` or `Retry-After` (seconds or a date); None where there is neither."""
    try:
        if (milliseconds := headers.get("retry-after-ms")) is not None:
            return max(0.0, float(milliseconds) / 1000)
        value = headers.get("retry-after")
        if value is None:
            return None
        if value.replace(".", "", 1).isdigit():
            return float(value)
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _scrub(text: str, key: str) -> str:
    """Whatever a provider repeats of the key does not get into a message or a log."""
    return text if key == KEYLESS else text.replace(key, "[key]")


def _said(error: Any, key: str) -> str:
    body = error.body if isinstance(error.body, dict) else {}
    inner = body.get("error", body)
    code = f" ({inner['code']})" if isinstance(inner, dict) and inner.get("code") else ""
    said = inner.get("message") if isinstance(inner, dict) else None
    return _scrub(f"{said or error.message}{code}"[:500], key)


def _json_of(response: Any) -> Any:
    try:
        return json.loads(response.content)
    except ValueError:
        kind = response.headers.get("content-type", "no content type")
        raise Transient(f"the answer ({kind}) is no JSON: {response.text[:100]!r}", charged=True) from None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _count(headers: Mapping[str, str], name: str) -> int | None:
    value = headers.get(name, "")
    return int(value) if value.isdigit() and int(value) > 0 else None


def _top_logprobs(choice: Body) -> list[Body] | None:
    """Each token with the most likely ones at its place, as OpenAI gives them."""
    content = (choice.get("logprobs") or {}).get("content")
    if not content:
        return None
    return [
        {
            "token": one["token"],
            "logprob": float(one["logprob"]),
            "top": [[other["token"], float(other["logprob"])] for other in one.get("top_logprobs") or []],
        }
        for one in content
    ]
