"""The batch APIs of OpenAI and Anthropic, at half the price and within a day: a provider whose requests go together.

Each batch leaves a note in the data set before it is submitted, with a mark that the provider keeps or its number of
requests. A process that starts again finds its batches by their notes and waits for them, instead of paying again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from proxykd.collection.api_keys import ApiKey
from proxykd.collection.failures import Body, Denied, Failure, Limited, Transient, failure_of, failures, words_of
from proxykd.collection.habits import FIXES, Whose
from proxykd.collection.providers import Limits, chat_body, message_body, openai_client
from proxykd.collection.replies import parse_chat, parse_message
from proxykd.collection.requests import Reply, Request
from proxykd.config import TeacherConfig
from proxykd.runs.storage import read_json, write_json

GATHER_S = 1.0
"""Without a new request, after which a batch goes out as it is."""
MARK = "proxykd"
Note = dict[str, Any]


class BatchRefused(Denied):
    """The provider took the batch and then refused it as a whole: none of its requests was answered or charged."""


class BatchApi(Protocol):
    async def submit(self, requests: list[Request], mark: str) -> str:
        """Returns the batch's id."""

    async def find(self, note: Note) -> str | None:
        """The id of a batch whose submission was not heard of, if it arrived."""

    async def ended(self, batch: str) -> bool:
        """Whether the batch is over, with whatever outcome."""

    def results(self, batch: str) -> AsyncIterator[tuple[str, Reply | Failure]]:
        """Each request's key with its reply, or with its failure.

        Raises:
            BatchRefused: none of them was looked at.
        """

    async def close(self) -> None: ...


class BatchProvider:
    """A provider whose requests wait for their batch."""

    def __init__(self, api: BatchApi, key: ApiKey, notes: Path, size: int, poll_s: float):
        self._api = api
        self._key = key
        self._folder = notes
        self._size = size
        self._poll_s = poll_s
        self._notes: dict[str, Note] = {path.stem: read_json(path) for path in sorted(notes.glob("*.json"))}
        self._out = {key: mark for mark, note in self._notes.items() for key in note["keys"]}
        self._new: list[Request] = []
        self._asked: dict[str, Request] = {}
        self._waiting: dict[str, asyncio.Future[Reply]] = {}
        self._arrived = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None

    def holds(self, key: str) -> bool:
        """Whether an earlier process has submitted this one."""
        return key in self._out

    async def complete(self, request: Request) -> tuple[Reply, Limits]:
        """Puts a request into the next batch, unless one has it already, and returns its reply when that has ended.

        Raises:
            Transient: the batch ended without an answer to it.
            Rejected, Unclear: this prompt was refused.
            Denied: the provider refuses the batches themselves.
        """
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        answer = self._waiting[request.key] = asyncio.get_running_loop().create_future()
        self._asked[request.key] = request
        if request.key not in self._out:
            self._new.append(request)
        self._arrived.set()
        return await answer, Limits()

    async def close(self) -> None:
        if self._worker is not None:
            self._worker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._worker
        await self._api.close()

    async def _work(self) -> None:
        try:
            await self._find_lost()
            looked_at = 0.0
            while True:
                self._arrived.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(GATHER_S):
                        await self._arrived.wait()
                quiet = not self._arrived.is_set()
                while len(self._new) >= self._size or (self._new and quiet):
                    await self._submit(self._new[: self._size])
                if time.monotonic() - looked_at >= self._poll_s:
                    looked_at = time.monotonic()
                    for mark in {self._out[key] for key in self._waiting if key in self._out}:
                        await self._collect(mark)
        except Exception as error:
            told = self._key.scrubbed(error) if isinstance(error, Failure) else error
            for answer in self._waiting.values():
                if not answer.done():
                    answer.set_exception(told)
            self._waiting.clear()
            self._new.clear()

    async def _find_lost(self) -> None:
        for mark, note in list(self._notes.items()):
            if note["batch"] is None and (batch := await self._api.find(note)) is not None:
                self._keep(mark, note | {"batch": batch})
            elif note["batch"] is None:  # it never arrived
                self._keep(mark, note | {"keys": []})
                self._new += [self._asked[key] for key in note["keys"] if key in self._waiting]

    async def _submit(self, requests: list[Request]) -> None:
        mark = uuid.uuid4().hex
        note = {"mark": mark, "keys": [request.key for request in requests], "batch": None, "time": time.time()}
        self._keep(mark, note)
        del self._new[: len(requests)]
        self._keep(mark, note | {"batch": await self._api.submit(requests, mark)})

    async def _collect(self, mark: str) -> None:
        """The answers of a batch that has ended. What has none leaves the batch, and may go into another."""
        note = self._notes[mark]
        if not await self._api.ended(note["batch"]):
            return
        try:
            results = {key: result async for key, result in self._api.results(note["batch"])}
        except BatchRefused:
            self._keep(mark, note | {"keys": []})  # the next start submits them anew
            raise
        nothing = Transient("the batch has ended without an answer to this one", charged=False)
        failed = [key for key in note["keys"] if isinstance(results.get(key, nothing), Failure)]
        self._keep(mark, note | {"keys": [key for key in note["keys"] if key not in failed]})
        for key in note["keys"]:
            result = results.get(key, nothing)
            if (answer := self._waiting.pop(key, None)) is None or answer.done():
                continue
            if isinstance(result, Failure):
                answer.set_exception(self._key.scrubbed(result))
            else:
                answer.set_result(result)

    def _keep(self, mark: str, note: Note) -> None:
        write_json(self._folder / f"{mark}.json", note)
        for key in self._notes.get(mark, note)["keys"]:
            self._out.pop(key, None)
        self._out |= dict.fromkeys(note["keys"], mark)
        self._notes[mark] = note


def forget(notes: Path, keys: set[str]) -> None:
    """Takes requests out of their batches, so that they go into another."""
    for path in sorted(notes.glob("*.json")):
        note = read_json(path)
        if not keys.isdisjoint(note["keys"]):
            write_json(path, note | {"keys": [key for key in note["keys"] if key not in keys]})


class OpenAIBatches:
    """Files in, files out; the mark is in the batch's metadata."""

    ENDED = ("completed", "failed", "expired", "cancelled")
    URL = "/v1/chat/completions"

    def __init__(self, teacher: TeacherConfig, base_url: str | None, key: str):
        import openai

        self._teacher = teacher
        self._sdk = openai
        self._client = openai_client(base_url, key, max_retries=RETRIES)

    async def submit(self, requests: list[Request], mark: str) -> str:
        lines = [
            {
                "custom_id": request.key,
                "method": "POST",
                "url": self.URL,
                "body": _flat(chat_body(self._teacher, request)),
            }
            for request in requests
        ]
        data = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
        with _about_batches(self._sdk):
            file = await self._client.files.create(file=(f"{mark}.jsonl", data), purpose="batch")
            batch = await self._client.batches.create(
                input_file_id=file.id,
                endpoint=self.URL,  # type: ignore[arg-type]
                completion_window="24h",
                metadata={MARK: mark},
            )
        return batch.id

    async def find(self, note: Note) -> str | None:
        with _about_batches(self._sdk):
            async for batch in self._client.batches.list(limit=100):
                if (batch.metadata or {}).get(MARK) == note["mark"]:
                    return batch.id
        return None

    async def ended(self, batch: str) -> bool:
        with _about_batches(self._sdk):
            return (await self._client.batches.retrieve(batch)).status in self.ENDED

    async def results(self, batch: str) -> AsyncIterator[tuple[str, Reply | Failure]]:
        with _about_batches(self._sdk):
            about = await self._client.batches.retrieve(batch)
            if about.status == "failed":
                raise BatchRefused(f"the batch was refused: {_errors_of(about)}", FIXES[Whose.REQUEST])
            for file in (about.output_file_id, about.error_file_id):
                if file is not None:
                    text = (await self._client.files.content(file)).text
                    for line in text.splitlines():
                        yield _chat_result(json.loads(line), self._teacher.model)

    async def close(self) -> None:
        await self._client.close()


class AnthropicBatches:
    """Message batches. They carry no mark, so that a lost one is known by its time and its number of requests."""

    def __init__(self, teacher: TeacherConfig, base_url: str | None, key: str):
        import anthropic

        self._teacher = teacher
        self._sdk = anthropic
        self._client = anthropic.AsyncAnthropic(base_url=base_url, api_key=key, max_retries=RETRIES)

    async def submit(self, requests: list[Request], mark: str) -> str:
        lines: Any = [
            {"custom_id": request.key, "params": _flat(message_body(self._teacher, request))} for request in requests
        ]
        with _about_batches(self._sdk):
            return (await self._client.messages.batches.create(requests=lines)).id

    async def find(self, note: Note) -> str | None:
        with _about_batches(self._sdk):
            async for batch in self._client.messages.batches.list(limit=100):
                counts = batch.request_counts
                total = counts.processing + counts.succeeded + counts.errored + counts.canceled + counts.expired
                if total == len(note["keys"]) and batch.created_at.timestamp() >= note["time"] - CLOCKS_APART_S:
                    return batch.id
        return None

    async def ended(self, batch: str) -> bool:
        with _about_batches(self._sdk):
            return (await self._client.messages.batches.retrieve(batch)).processing_status == "ended"

    async def results(self, batch: str) -> AsyncIterator[tuple[str, Reply | Failure]]:
        with _about_batches(self._sdk):
            async for line in await self._client.messages.batches.results(batch):
                yield _message_result(line.model_dump(mode="json"), self._teacher.model)

    async def close(self) -> None:
        await self._client.close()


RETRIES = 5
"""Of the calls about a batch, by the client itself: they cost nothing."""
CLOCKS_APART_S = 60.0


def _flat(body: Body) -> Body:
    more: Body = body.get("extra_body", {})
    return {key: value for key, value in body.items() if key != "extra_body"} | more


def _errors_of(batch: Any) -> str:
    """What OpenAI says of a batch that failed as a whole."""
    found = (batch.errors.data if batch.errors else None) or []
    return "; ".join(words_of(error.model_dump(mode="json"), {}) for error in found) or "it does not say why"


def _chat_result(line: Body, model: str) -> tuple[str, Reply | Failure]:
    response = line.get("response")
    if not response:
        return line["custom_id"], Transient(words_of(line.get("error"), {}), charged=False)
    if response["status_code"] != 200:
        return line["custom_id"], failure_of(response["status_code"], {}, response["body"])
    return line["custom_id"], _parsed(parse_chat, response["body"], model)


def _message_result(line: Body, model: str) -> tuple[str, Reply | Failure]:
    result = line["result"]
    if result["type"] == "succeeded":
        return line["custom_id"], _parsed(parse_message, result["message"], model)
    if result["type"] == "errored":
        return line["custom_id"], failure_of(None, {}, result["error"])
    return line["custom_id"], Transient(f"the request is {result['type']}", charged=False)


def _parsed(parse: Callable[[Any, str], Reply], answer: Any, model: str) -> Reply | Failure:
    try:
        return parse(answer, model)
    except Failure as failure:
        return failure


@contextlib.contextmanager
def _about_batches(sdk: ModuleType) -> Iterator[None]:
    """A failure about a batch is one of all its requests: the provider is away, or nothing works until it is mended. No
    answer was paid for."""
    try:
        with failures(sdk):
            yield
    except (Limited, Transient) as error:
        raise Transient(str(error), charged=False, retry_after=error.retry_after) from None
    except Denied:
        raise
    except Failure as error:
        raise Denied(str(error), FIXES[Whose.REQUEST]) from None
