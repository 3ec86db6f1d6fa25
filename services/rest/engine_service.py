"""An engine behind Serve as its REST front asks it: with every failure as a status, a bound and a deadline.

It holds no weights.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException

from actors.cluster.http_options import HttpOptions
from actors.engine.openai_front import Opening, Route
from proxykd.config import RunConfig
from proxykd.errors import EngineError, ProxykdError
from proxykd.runs.adapter_names import UnknownAdapterError
from proxykd.runs.run_directory import RunDirectory
from proxykd.text.chat import ChatFormat
from proxykd.text.tokenizer import load_tokenizer
from services.access.refusals import ApiError

GRACE_S = 5.0
"""What an answer may take beyond its deadline, which the engine keeps itself, before the engine counts as gone."""


@dataclass(frozen=True)
class ServiceSpec:
    """All that the REST front needs to know."""

    run: str
    default_adapter: str
    max_length: int
    """Tokens of prompt and completion together."""
    beside_run: bool
    """A run is at work: its engine comes and goes, and clients wait for it."""
    shares_cores: bool
    """Engine and trainer have the same cores: clients are held off while it trains."""
    deadline_s: float = 120.0
    ready_within_s: float = 20.0
    max_in_flight: int = 256
    key_digests: tuple[str, ...] = ()
    max_body_bytes: int = 2**21
    host: str = "127.0.0.1"
    """The address that Serve binds. Without keys no other name is answered."""

    @classmethod
    def of_run(
        cls,
        run: RunDirectory,
        config: RunConfig,
        http: HttpOptions,
        beside_run: bool,
        default_adapter: str = "aligned",
    ) -> ServiceSpec:
        return cls(
            run=str(run.root),
            default_adapter=default_adapter,
            max_length=config.corpus.max_length,
            beside_run=beside_run,
            shares_cores=config.resources.device == "cpu",
            deadline_s=config.resources.request_deadline_s,
            key_digests=http.key_digests,
            host=http.host,
        )


class EngineService:
    """One engine of a run, whose models have the texts (tokenizer, template) of the folder `voice`."""

    def __init__(self, spec: ServiceSpec, engine: Callable[[], Any], voice: Path):
        """`engine` gives the Serve handle of the engine's deployment; it may raise while there is none."""
        self.spec = spec
        self._engine = engine
        self.run = RunDirectory.open(spec.run)
        self._chat = ChatFormat(load_tokenizer(voice))
        self.started_at = int(time.time())
        self._in_flight = 0
        self.metrics = ServiceMetrics()

    async def openai(self, route: Route, name: str, body: dict[str, Any]) -> AsyncIterator[Opening | str]:
        """The opening of an answer by the model of that whole name, then its chunks where it streams. Read it to its
        end or close it."""
        asked = self._rendered(body) if route == "chat" else self._fitting(body)
        with self._admitted(route, name) as seen, self._failures_as_statuses():
            async for part in self._parts(route, name, asked):
                if isinstance(part, Opening):
                    seen.status = part.status
                yield part

    async def ready(self) -> str:
        """The name of the adapter in the weights, after the engine has made one real token with it."""
        self._require_engine()
        return await self._probe(self._engine)

    async def _probe(self, engine: Callable[[], Any]) -> str:
        with self._failures_as_statuses():
            async with asyncio.timeout(self.spec.ready_within_s):
                loaded: str = await engine().probe.remote(self.spec.ready_within_s)
                return loaded

    async def exposition(self) -> str:
        """Prometheus text: ours, and vLLM's where the engine is up."""
        theirs = await self._or_none(lambda: self._engine().metrics.remote(), self.spec.ready_within_s)
        return generate_latest(self.metrics.registry).decode() + (theirs or "")

    async def _or_none(self, ask: Callable[[], Any], within_s: float) -> Any:
        """What the engine says of itself, None where it is not up."""
        try:
            async with asyncio.timeout(within_s):
                return await ask()
        except (RayError, RayServeException, ProxykdError, TimeoutError):
            return None

    # -- the parts -----------------------------------------------------------------------------------------------

    async def _parts(self, route: Route, name: str, asked: dict[str, Any]) -> AsyncIterator[Opening | str]:
        stream = self._engine().options(stream=True).openai.remote(route, name, asked, self.spec.deadline_s)
        while (part := await self._within_deadline(anext(stream, None))) is not None:
            yield part

    def _rendered(self, body: dict[str, Any]) -> dict[str, Any]:
        """A chat with its prompt as token ids, the very ones that training has for it."""
        try:
            ids = self._chat.prompt_ids(body["messages"])
        except ProxykdError as error:
            raise ApiError(400, str(error), param="messages") from error
        self._require_room(len(ids), 1, "messages")
        return body | {"prompt_token_ids": ids}

    def _fitting(self, body: dict[str, Any]) -> dict[str, Any]:
        """A completion's body, once each of its prompts leaves room for a token where one is asked for."""
        given = body["prompt"]
        prompts = given if isinstance(given, list) and not isinstance(given[0], int) else [given]
        special, asked = body.get("add_special_tokens", True), min(1, body.get("max_tokens", 1))
        for prompt in prompts:
            ids = (
                prompt if isinstance(prompt, list) else self._chat.tokenizer.encode(prompt, add_special_tokens=special)
            )
            self._require_room(len(ids), asked, "prompt")
        return body

    def _require_room(self, prompt: int, completion: int, param: str) -> None:
        """Raises ApiError 400 where so many tokens are more than the context."""
        limit = self.spec.max_length
        if prompt + completion > limit:
            raise ApiError(
                400,
                f"the prompt has {prompt} tokens, and prompt and completion have at most {limit} together; shorten it "
                f"to {limit - completion}",
                param=param,
            )

    @contextmanager
    def _admitted(self, route: str, adapter: str) -> Iterator[Seen]:
        """Counts a request in and out, or refuses it: too many, or the engine is not there for clients now."""
        began = time.monotonic()
        seen = Seen()
        try:
            self._require_engine()
            if self._in_flight >= self.spec.max_in_flight:
                raise ApiError(429, f"{self._in_flight} requests are in flight, the limit; try again", retry_after_s=1)
            with self._counted():
                yield seen
        except ApiError as error:
            seen.status = error.status
            raise
        except (asyncio.CancelledError, GeneratorExit):
            seen.status = 499
            raise
        finally:
            self.metrics.requests.labels(route, adapter, seen.status).inc()
            self.metrics.seconds.labels(route).observe(time.monotonic() - began)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._in_flight += 1
        self.metrics.in_flight.set(self._in_flight)
        try:
            yield
        finally:
            self._in_flight -= 1
            self.metrics.in_flight.set(self._in_flight)

    def _require_engine(self) -> None:
        """Raises ApiError 503 where the engine is not there for clients now."""

    async def _within_deadline(self, answer: Any) -> Any:
        async with asyncio.timeout(self.spec.deadline_s + GRACE_S):
            return await answer

    @contextmanager
    def _failures_as_statuses(self) -> Iterator[None]:
        try:
            yield
        except UnknownAdapterError as error:
            raise ApiError(404, str(error), param="model") from error
        except TimeoutError as error:
            raise ApiError(504, f"no answer within {self.spec.deadline_s:g} s", retry_after_s=5) from error
        except BackPressureError as error:
            raise ApiError(429, "the engine's queue is full; try again", retry_after_s=1) from error
        except (EngineError, RayActorError, DeploymentUnavailableError) as error:
            raise ApiError(503, "the engine died; a replacement starts", retry_after_s=10) from error
        except RayServeException as error:
            raise ApiError(503, "the engine is not deployed now", retry_after_s=10) from error
        except ProxykdError as error:  # such as an adapter whose files are not what its manifest says
            kind = type(getattr(error, "cause", error)).__name__
            raise ApiError(503, f"the adapter cannot be taken up ({kind}); the engine's log says why") from error


@dataclass
class Seen:
    """How a request ends; 499 where the client hung up."""

    status: int = 200


class ServiceMetrics:
    """The front's own figures, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "proxykd_requests",
            "Requests by route, adapter and status.",
            ["route", "adapter", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "proxykd_request_seconds", "Seconds to the end of an answer, by route.", ["route"], registry=self.registry
        )
        self.in_flight = Gauge(
            "proxykd_requests_in_flight", "Requests that the engine works on or queues.", registry=self.registry
        )
