"""A provider that misbehaves on purpose, over real HTTP: OpenAI's chat, files and batches, Anthropic's messages.

    python -m tests.teacher_stub [SETTINGS as JSON]      prints its port; POST /control changes it, GET /stats tells

An answer depends on the request alone, so that two data sets can be compared. Sockets are written by hand, since no
HTTP server would send half a JSON or reset a connection when asked.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import random
import re
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.provider_habits import ANSWERS, ERRORS_IN_PLACE, REFUSALS, as_events

WORDS = [
    "amber",
    "birch",
    "cedar",
    "delta",
    "ember",
    "fjord",
    "grove",
    "heath",
    "islet",
    "juniper",
    "knoll",
    "larch",
    "meadow",
    "nectar",
    "oasis",
    "pine",
]
BATCH_REFUSED = {
    "status": "failed",
    "output_file_id": None,
    "errors": {
        "object": "list",
        "data": [{"code": "token_limit_exceeded", "message": "Enqueued token limit reached."}],
    },
}
"""OpenAI's words for a batch of which it looks at no request."""
KEY = "sk-stub-0123456789abcdef"


@dataclass
class Settings:
    """How it behaves. `faults` befall the first attempt at `share` of the prompts; `always` befall every request.
    `habits` (provider_habits.py) befall every attempt at `habit_share` of the prompts that hold `habit_word`, each prompt
    always the same one.
    `shape` is `azure` for Azure's routes and keys alone.
    """

    faults: list[str] = field(default_factory=list)
    share: float = 0.0
    habits: list[str] = field(default_factory=list)
    habit_share: float = 1.0
    habit_word: str = ""
    shape: str = "openai"
    refuses_batches: bool = False
    always: str | None = None
    latency_s: float = 0.0
    model: str = "stub-1"
    model_after: int | None = None
    revoke_after: int | None = None
    requests_per_minute: float | None = None
    window: str = "bucket"
    burst: float | None = None
    names_retry_after: bool = True
    names_limits: bool = False
    key: str | None = None
    completion_tokens: int = 8
    logprobs: bool = False
    judge: str = ""
    """As a judge of two answers: `longer`, `shorter` and `first` name the answer that they prefer, `some` does as longer
    and says nothing of a third of the comparisons, `refuses` declines; else words.
    """


class Limiter:
    """A provider's limit of requests a minute: a bucket that refills, or windows of a minute, fixed or sliding."""

    def __init__(self, settings: Settings, now: float):
        self._kind = settings.window
        self._rate = (settings.requests_per_minute or 0.0) / 60.0
        self._capacity = settings.burst if settings.burst is not None else max(1.0, self._rate)
        self._tokens, self._at = self._capacity, now
        self._limit = settings.requests_per_minute or 0.0
        self._taken: deque[float] = deque()
        self._began = now

    def wait(self, now: float) -> float:
        """0 where a request may pass, else seconds until one may."""
        if self._kind == "bucket":
            self._tokens = min(self._capacity, self._tokens + (now - self._at) * self._rate)
            self._at = now
            if self._tokens >= 1.0:
                self._tokens -= 1.0
                return 0.0
            return (1.0 - self._tokens) / self._rate
        start = now - 60.0 if self._kind == "sliding" else now - (now - self._began) % 60.0
        while self._taken and self._taken[0] < start:
            self._taken.popleft()
        if len(self._taken) < self._limit:
            self._taken.append(now)
            return 0.0
        return (self._taken[0] + 60.0 if self._kind == "sliding" else start + 60.0) - now


class Stub:
    """The server's state: what it was asked, what it answered, and what it took for that."""

    def __init__(self, settings: Settings):
        self.apply(settings)
        self.attempts: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.statuses: list[tuple[float, int]] = []
        self.faults: Counter[str] = Counter()
        self.tokens = 0
        self.in_flight = self.most_in_flight = 0
        self.files: dict[str, list[dict[str, Any]]] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.told: set[str] = set()
        self.host = self.key_given = ""

    def apply(self, settings: Settings) -> None:
        self.settings = settings
        self.limiter = Limiter(settings, time.monotonic()) if settings.requests_per_minute else None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode("latin-1").split("\r\n")
                method, path, _ = lines[0].split(" ", 2)
                headers = {
                    name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])
                }
                self.host = headers.get("host", "")
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                self.in_flight += 1
                self.most_in_flight = max(self.most_in_flight, self.in_flight)
                try:
                    if not await self._answer(writer, method, path, headers, body):
                        return
                finally:
                    self.in_flight -= 1
        writer.close()

    async def _answer(
        self, writer: asyncio.StreamWriter, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> bool:
        if path == "/stats":
            return await self._send(writer, 200, self.stats())
        if path == "/control":
            self.apply(Settings(**json.loads(body)))
            return await self._send(writer, 200, {})
        path, _, query = path.partition("?")
        if self.settings.shape == "azure" and not ("/openai/deployments/stub-1/" in path and "api-version=" in query):
            return await self._send(writer, 404, {"error": {"code": "404", "message": "Resource not found"}})
        names = ("api-key",) if self.settings.shape == "azure" else ("authorization", "x-api-key")
        given = next((headers[name].removeprefix("Bearer ") for name in names if name in headers), "")
        if self._revoked() or (self.settings.key is not None and given != self.settings.key):
            return await self._error(writer, 401, incorrect(given), "invalid_api_key")
        self.key_given = given
        if "/batches" in path or "/files" in path:
            return await self._batch_route(writer, method, path.partition("?")[0], headers, body)
        if path.endswith("/chat/completions"):
            return await self._complete(writer, json.loads(body), chat_completion)
        if path.endswith("/messages"):
            return await self._complete(writer, json.loads(body), message)
        return await self._error(writer, 404, f"no route {path}", "not_found")

    def _revoked(self) -> bool:
        return self.settings.revoke_after is not None and self.answered.total() >= self.settings.revoke_after

    async def _batch_route(
        self, writer: asyncio.StreamWriter, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> bool:
        """OpenAI's files and batches, and Anthropic's message batches. A batch ends `latency_s` after its creation."""
        parts = path.strip("/").split("/")
        ours = "messages" in parts
        if method == "POST" and parts[-1] == "files":
            boundary = headers["content-type"].partition("boundary=")[2].encode()
            [data] = [part for part in body.split(b"--" + boundary) if b"filename=" in part]
            name = f"file-{len(self.files)}"
            lines = data.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n").splitlines()
            self.files[name] = [json.loads(line) for line in lines]
            return await self._send(writer, 200, {"id": name, "object": "file"})
        if method == "POST":
            given = json.loads(body)
            requests = given["requests"] if ours else self.files[given["input_file_id"]]
            name = f"batch-{len(self.batches)}"
            self.batches[name] = {
                "id": name, "requests": requests, "ours": ours, "at": time.time(), "metadata": given.get("metadata"),
            }  # fmt: skip
            return await self._send(writer, 200, self._batch(name))
        if parts[-1] == "batches":
            listed = {
                "object": "list",
                "data": [self._batch(name) for name in reversed(self.batches)],
                "has_more": False,
            }
            return await self._send(writer, 200, listed)
        if parts[-1] in ("content", "results"):
            lines = self._results(parts[-2].removeprefix("out-"))
            return await self._raw(
                writer, "".join(json.dumps(line) + "\n" for line in lines).encode(), "application/jsonl"
            )
        return await self._send(writer, 200, self._batch(parts[-1]))

    def _batch(self, name: str) -> dict[str, Any]:
        batch = self.batches[name]
        ended, count = time.time() - batch["at"] >= self.settings.latency_s, len(batch["requests"])
        if not batch["ours"]:
            return {
                "id": name, "object": "batch", "endpoint": "/v1/chat/completions", "completion_window": "24h",
                "created_at": int(batch["at"]), "input_file_id": "in", "metadata": batch["metadata"],
                "status": "completed" if ended else "in_progress", "output_file_id": f"out-{name}" if ended else None,
            } | (BATCH_REFUSED if self.settings.refuses_batches else {})  # fmt: skip
        counts = dict.fromkeys(("succeeded", "errored", "canceled", "expired"), 0) | {"processing": count}
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(batch["at"]))
        return {
            "id": name, "type": "message_batch", "processing_status": "ended" if ended else "in_progress",
            "request_counts": counts, "created_at": created, "expires_at": created, "ended_at": None,
            "results_url": f"http://{self.host}/v1/messages/batches/{name}/results",
        }  # fmt: skip

    def _results(self, name: str) -> list[dict[str, Any]]:
        """Of a batch's requests every one answered, but those whose first attempt a fault befalls: an error each."""
        batch, lines = self.batches[name], []
        for line in batch["requests"]:
            request = line["params"] if batch["ours"] else line["body"]
            asked = identity(request)
            draw = random.Random(asked)
            if (habit := self._habit(asked)) in REFUSALS:
                self.faults[habit] += 1
                status, body, _ = REFUSALS[habit]
                told = {"result": {"type": "errored", "error": body}} if batch["ours"] else {}
                lines.append({"custom_id": line["custom_id"], "response": {"status_code": status, "body": body}} | told)
            elif self.settings.faults and self.attempts[asked] == 0 and draw.random() < self.settings.share:
                self.faults["batch"] += 1
                failed = {"type": "errored", "error": {"type": "error", "error": {"type": "api_error", "message": "x"}}}
                error = {"code": "batch_expired", "message": "x"}
                lines.append(
                    {"custom_id": line["custom_id"]} | ({"result": failed} if batch["ours"] else {"error": error})
                )
            else:
                self.answered[asked] += 0 if name in self.told else 1
                text = text_of(request, self.settings.completion_tokens)
                shape = message if batch["ours"] else chat_completion
                answer = shape(request, self.settings.model, self.settings, text)
                good = {"type": "succeeded", "message": answer}
                response = {"status_code": 200, "body": answer}
                lines.append(
                    {"custom_id": line["custom_id"]} | ({"result": good} if batch["ours"] else {"response": response})
                )
            self.attempts[asked] += 1
        self.told.add(name)
        return lines

    async def _complete(self, writer: asyncio.StreamWriter, request: dict[str, Any], shape: Any) -> bool:
        settings, name = self.settings, identity(request)
        if self.limiter is not None and (wait := self.limiter.wait(time.monotonic())) > 0:
            self.statuses.append((time.monotonic(), 429))
            extra = {"retry-after": f"{wait:.3f}"} if settings.names_retry_after else {}
            return await self._error(writer, 429, "too many requests", "rate_limit_exceeded", extra)
        self.attempts[name] += 1
        await asyncio.sleep(settings.latency_s)
        fault = settings.always
        if fault is None and settings.faults and self.attempts[name] == 1:
            draw = random.Random(name)
            fault = draw.choice(settings.faults) if draw.random() < settings.share else None
        if fault is not None and (ended := await self._misbehave(writer, fault, request, shape)) is not None:
            return ended
        habit = self._habit(name) if settings.habit_word in json.dumps(request["messages"]) else ""
        if habit in REFUSALS and REFUSALS[habit][2] in (None, *request):
            self.faults[habit] += 1
            status, body, _ = REFUSALS[habit]
            return await self._send(writer, status, body)
        if habit in ERRORS_IN_PLACE:
            self.faults[habit] += 1
            return await self._send(writer, 200, ERRORS_IN_PLACE[habit])
        if habit == "the key repeated":
            self.faults[habit] += 1
            return await self._raw(writer, repeated(self.key_given).encode(), "text/html")
        if self._revoked():  # while others were answered
            return await self._error(writer, 401, incorrect(self.key_given), "invalid_api_key")
        self.answered[name] += 1
        self.statuses.append((time.monotonic(), 200))
        model = settings.model
        if settings.model_after is not None and self.answered.total() > settings.model_after:
            model = "stub-2"
        text = judged(request, settings.judge) or text_of(request, settings.completion_tokens)
        answer = shape(request, model, settings, text)
        self.tokens += sum(answer["usage"].get(key, 0) for key in ("total_tokens", "input_tokens", "output_tokens"))
        if habit in ANSWERS or habit == "events":
            self.faults[habit] += 1
        if habit in ANSWERS:
            ANSWERS[habit](answer)
        if habit == "events":
            return await self._raw(writer, as_events(answer), "text/event-stream; charset=utf-8")
        limit = settings.requests_per_minute
        extra = {"x-ratelimit-limit-requests": f"{limit:.0f}"} if settings.names_limits and limit else {}
        return await self._send(writer, 200, answer, extra)

    def _habit(self, name: str) -> str:
        draw = random.Random(f"{name} habit")
        return (
            draw.choice(self.settings.habits)
            if self.settings.habits and draw.random() < self.settings.habit_share
            else ""
        )

    async def _misbehave(
        self, writer: asyncio.StreamWriter, fault: str, request: dict[str, Any], shape: Any
    ) -> bool | None:
        """True or False where the fault was the answer (False: the connection is gone), None where one follows."""
        self.faults[fault] += 1
        whole = json.dumps(shape(request, self.settings.model, self.settings, "cut off")).encode()
        if fault == "429":
            return await self._error(writer, 429, "slow down", "rate_limit_exceeded")
        if fault == "429 with Retry-After":
            return await self._error(writer, 429, "slow down", "rate_limit_exceeded", {"retry-after": "0.3"})
        if fault.isdigit():
            return await self._error(writer, int(fault), f"fault {fault}", "server_error")
        if fault == "reset":
            writer.transport.abort()
            return False
        if fault == "hang":
            await asyncio.sleep(3600)
        if fault == "slow drip":
            writer.write(head(200, len(whole)))
            for byte in whole:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.5)
        if fault == "truncated JSON":
            return await self._raw(writer, whole[: len(whole) // 2], "application/json")
        if fault == "wrong content type":
            return await self._raw(writer, b"<html>gateway</html>", "text/html")
        if fault == "no choices":
            return await self._raw(writer, b'{"id": "x", "model": "stub-1"}', "application/json")
        return None

    async def _error(
        self, writer: asyncio.StreamWriter, status: int, text: str, code: str, extra: dict[str, str] | None = None
    ) -> bool:
        return await self._send(writer, status, {"error": {"message": text, "code": code, "type": code}}, extra)

    async def _send(
        self, writer: asyncio.StreamWriter, status: int, value: Any, extra: dict[str, str] | None = None
    ) -> bool:
        data = json.dumps(value).encode()
        writer.write(head(status, len(data), "application/json", extra) + data)
        await writer.drain()
        return True

    async def _raw(self, writer: asyncio.StreamWriter, data: bytes, kind: str) -> bool:
        writer.write(head(200, len(data), kind) + data)
        await writer.drain()
        return True

    def stats(self) -> dict[str, Any]:
        return {
            "answered": self.answered.total(),
            "batches": len(self.batches),
            "answered_twice": sum(count - 1 for count in self.answered.values()),
            "tokens": self.tokens,
            "faults": dict(self.faults),
            "most_in_flight": self.most_in_flight,
            "in_flight": self.in_flight - 1,
            "timeline": [[at - self.statuses[0][0], status] for at, status in self.statuses],
        }


def incorrect(key: str) -> str:
    """OpenAI's words for a key that is none: it repeats its beginning and its end."""
    return f"Incorrect API key provided: {key[:8]}{'*' * 12}{key[-4:]}, that is {key}."


def repeated(key: str) -> str:
    """A gateway that shows its whole request, each header in several forms."""
    raw = f"Bearer {key}".encode()
    forms = [raw.decode(), raw.hex(), base64.b64encode(raw).decode(), base64.b64encode(b"u:" + key.encode()).decode()]
    return f"<html>{' '.join(forms)} {key[5:15]}</html>"


def head(status: int, length: int, kind: str = "application/json", extra: dict[str, str] | None = None) -> bytes:
    fields = {"content-type": kind, "content-length": str(length), **(extra or {})}
    lines = [f"HTTP/1.1 {status} -", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    return "\r\n".join(lines).encode()


def identity(request: dict[str, Any]) -> str:
    asked = {key: request.get(key) for key in ("messages", "system", "seed")}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]


def text_of(request: dict[str, Any], length: int) -> str:
    draw = random.Random(identity(request))
    return " ".join(draw.choice(WORDS) for _ in range(length))


def judged(request: dict[str, Any], how: str) -> str:
    """What a judge says of the two answers in a request."""
    if how == "refuses":
        return "I'm sorry, but I can't help with comparing these."
    if not how or (how == "some" and int(identity(request), 16) % 3 == 0):
        return ""
    said = request["messages"][-1]["content"]
    a, b = (re.findall(rf"<answer_{one}>\n(.*)\n</answer_{one}>", said, re.DOTALL)[0] for one in "ab")
    more = (len(a) - len(b)) * (-1 if how == "shorter" else 1)
    better = "A" if how == "first" or more > 0 else "tie" if more == 0 else "B"
    return f"It says more.\n**Verdict: {better}**"


def chat_completion(request: dict[str, Any], model: str, settings: Settings, text: str) -> dict[str, Any]:
    prompt = sum(len(m["content"].split()) + 3 for m in request["messages"])
    words = text.split()
    choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    if settings.logprobs and request.get("logprobs"):
        top = [{"token": "amber", "logprob": -0.5}, {"token": "birch", "logprob": -1.5}]
        choice["logprobs"] = {"content": [{"token": word, "logprob": -0.5, "top_logprobs": top} for word in words]}
    return {
        "id": f"chatcmpl-{identity(request)}",
        "object": "chat.completion",
        "model": model,
        "choices": [choice],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": len(words),
            "total_tokens": prompt + len(words),
        },
    }


def message(request: dict[str, Any], model: str, settings: Settings, text: str) -> dict[str, Any]:
    prompt = sum(len(m["content"].split()) + 3 for m in request["messages"])
    return {
        "id": f"msg_{identity(request)}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [{"type": "text", "text": text}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": prompt, "output_tokens": len(text.split())},
    }


async def main(settings: Settings) -> None:
    stub = Stub(settings)
    server = await asyncio.start_server(stub.serve, "127.0.0.1", 0, limit=1 << 20, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


class RunningStub:
    """A stub in a process of its own."""

    def __init__(self, port: int):
        self.root = f"http://127.0.0.1:{port}"
        self.base_url = f"{self.root}/v1"

    def stats(self) -> dict[str, Any]:
        stats: dict[str, Any] = httpx.get(f"{self.root}/stats", timeout=30).json()
        return stats

    def control(self, **settings: Any) -> None:
        httpx.post(f"{self.root}/control", json=settings, timeout=30).raise_for_status()


@contextmanager
def teacher_stub(**settings: Any) -> Iterator[RunningStub]:
    command = [sys.executable, "-m", "tests.teacher_stub", json.dumps(settings)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield RunningStub(int(process.stdout.readline()))
        finally:
            process.kill()


if __name__ == "__main__":
    asyncio.run(main(Settings(**json.loads(sys.argv[1] if len(sys.argv) > 1 else "{}"))))
