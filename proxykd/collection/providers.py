"""The providers, each behind the same call: a Request goes in, a Reply or a Failure (failures.py) comes out.

Their official clients make the requests; their own retries are off, since a retry counts against the rate limit and
the budget like any request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from proxykd.collection.api_keys import api_key
from proxykd.collection.failures import Body, Transient, failures
from proxykd.collection.replies import answer_of, parse_chat, parse_message
from proxykd.collection.requests import Reply, Request
from proxykd.config import AZURE_DEPLOYMENT, TeacherConfig

if TYPE_CHECKING:
    from openai import AsyncOpenAI

CONNECT_S = 20.0
"""For a connection, at most: what fails before there is one was never sent, and costs nothing."""


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
            Unclear: refused, perhaps for the prompt, perhaps for the request.
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
        self._key = api_key(teacher)
        self._deadline_s = deadline_s
        api = Anthropic if teacher.provider == "anthropic" else OpenAI
        self._api = api(teacher, base_url, self._key.value, connect_s=min(CONNECT_S, deadline_s / 2))

    def holds(self, key: str) -> bool:
        return False

    async def complete(self, request: Request) -> tuple[Reply, Limits]:
        """Sends one request and returns its reply, with the limits that the provider states.

        Raises:
            Failure: as Provider.complete; Transient also where no whole answer came within the deadline.
        """
        with self._key.kept_out():
            try:
                async with asyncio.timeout(self._deadline_s):
                    return await self._api.complete(request)
            except TimeoutError:
                raise Transient(f"no whole answer within {self._deadline_s:g} s", charged=True) from None

    async def close(self) -> None:
        await self._api.close()


class OpenAI:
    """Any OpenAI-compatible chat endpoint."""

    def __init__(self, teacher: TeacherConfig, base_url: str | None, key: str, connect_s: float):
        import openai

        self._teacher = teacher
        self._sdk = openai
        self._client = openai_client(base_url, key, max_retries=0, timeout=openai.Timeout(None, connect=connect_s))

    async def complete(self, request: Request) -> tuple[Reply, Limits]:
        with failures(self._sdk):
            raw = await self._client.chat.completions.with_raw_response.create(**chat_body(self._teacher, request))
        limits = Limits(
            _count(raw.headers, "x-ratelimit-limit-requests"), _count(raw.headers, "x-ratelimit-limit-tokens")
        )
        return parse_chat(answer_of(raw.http_response), self._teacher.model), limits

    async def close(self) -> None:
        await self._client.close()


def openai_client(base_url: str | None, key: str, **options: Any) -> AsyncOpenAI:
    """Returns OpenAI's client for an address; the one for Azure where it is that of a deployment. A query goes with
    every request (`?api-version=...`), and the route that the client adds may stand there already."""
    import openai

    if base_url is None:
        return openai.AsyncOpenAI(api_key=key, **options)
    parts = urlsplit(base_url)
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    address, query = urlunsplit(parts._replace(path=path, query="")), dict(parse_qsl(parts.query))
    if AZURE_DEPLOYMENT in path:
        version = query.pop("api-version")
        return openai.AsyncAzureOpenAI(base_url=address, api_key=key, api_version=version, **options)
    return openai.AsyncOpenAI(base_url=address, api_key=key, default_query=query, **options)


class Anthropic:
    """Anthropic's Messages API. It takes no seed, and gives no log-probs away."""

    def __init__(self, teacher: TeacherConfig, base_url: str | None, key: str, connect_s: float):
        import anthropic

        self._teacher = teacher
        self._sdk = anthropic
        timeout = anthropic.Timeout(None, connect=connect_s)
        self._client = anthropic.AsyncAnthropic(base_url=base_url, api_key=key, max_retries=0, timeout=timeout)

    async def complete(self, request: Request) -> tuple[Reply, Limits]:
        with failures(self._sdk):
            raw = await self._client.messages.with_raw_response.create(**message_body(self._teacher, request))
        limits = Limits(
            _count(raw.headers, "anthropic-ratelimit-requests-limit"),
            _count(raw.headers, "anthropic-ratelimit-output-tokens-limit"),
        )
        return parse_message(answer_of(raw.http_response), self._teacher.model), limits

    async def close(self) -> None:
        await self._client.close()


def chat_body(teacher: TeacherConfig, request: Request) -> Body:
    """Returns OpenAI's JSON body for `request`; its batch API takes the same."""
    body: Body = {
        "model": teacher.model,
        "messages": list(request.messages),
        "max_tokens": request.max_tokens or teacher.max_tokens,
        "temperature": teacher.temperature,
        "seed": request.seed,
    }
    if teacher.top_p is not None:
        body["top_p"] = teacher.top_p
    if teacher.top_logprobs:
        body |= {"logprobs": True, "top_logprobs": teacher.top_logprobs}
    body = {field: value for field, value in body.items() if field not in teacher.leave_out}
    if "max_tokens" in body and teacher.max_tokens_field != "max_tokens":
        body[teacher.max_tokens_field] = body.pop("max_tokens")
    return body | ({"extra_body": teacher.extra_body} if teacher.extra_body else {})


def message_body(teacher: TeacherConfig, request: Request) -> Body:
    """Returns Anthropic's JSON body: the system message apart, sampling parameters where they are not the default."""
    system = [m["content"] for m in request.messages if m["role"] == "system"]
    body: Body = {
        "model": teacher.model,
        "messages": [m for m in request.messages if m["role"] != "system"],
        "max_tokens": request.max_tokens or teacher.max_tokens,
    }
    if system:
        body["system"] = "\n\n".join(system)
    # The client knows no sampling parameters, which newer models refuse; 1 is the API's own temperature.
    more: Body = {} if teacher.temperature == 1.0 else {"temperature": teacher.temperature}
    more |= {} if teacher.top_p is None else {"top_p": teacher.top_p}
    more |= teacher.extra_body
    return body | ({"extra_body": more} if more else {})


def _count(headers: Mapping[str, str], name: str) -> int | None:
    value = headers.get(name, "")
    return int(value) if value.isascii() and value.isdigit() and len(value) < 16 and int(value) > 0 else None
