"""What the REST routes ask: which adapters there are, and the engine behind Serve, with every failure as a status.

It holds no weights. It admits a bounded number of requests, gives each a deadline, and knows from the run directory
whether the engine is up and free for clients.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException

from actors.cluster.http_options import HttpOptions
from actors.engine.openai_front import Opening, Route
from actors.engine.proxy_engine import CLIENT, Switching
from actors.telemetry.live_state import LiveState, read_live
from proxykd.config import RunConfig
from proxykd.data.label_shards import CompletionLogps
from proxykd.errors import EngineError, ProxykdError
from proxykd.report.adapter_catalogue import AdapterCard, catalogue, find, trust_of_run
from proxykd.runs.adapter_names import UnknownAdapterError
from proxykd.runs.run_directory import RunDirectory
from proxykd.text.chat import ChatFormat
from proxykd.text.tokenizer import load_tokenizer
from services.access.refusals import ApiError
from services.rest.distribution import DistributionQuery, distribution_of
from services.rest.schemas import DistributionBody

QUESTIONS_AT_ONCE = 16
"""Of one request."""
SWITCHING_WITHIN_S = 2.0
LIVE_FOR_S = 0.5
"""How long one look at the run's live state is good for."""
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


class ProxyService:
    def __init__(self, spec: ServiceSpec, engine: Callable[[], Any]):
        """`engine` gives the Serve handle of the engine's deployment; it may raise while there is none."""
        self.spec = spec
        self._engine = engine
        self.run = RunDirectory.open(spec.run)
        self._chat = ChatFormat(load_tokenizer(self.run.models / "proxy"))
        self.started_at = int(time.time())
        self._in_flight = 0
        self._live: tuple[float, LiveState] = (0.0, LiveState())
        self.metrics = ServiceMetrics()

    # -- adapters ------------------------------------------------------------------------------------------------

    def adapters(self) -> list[AdapterCard]:
        return catalogue(self.run)

    def adapter(self, name: str | None) -> AdapterCard:
        """Returns the adapter of that name, or the default one.

        Raises:
            ApiError: 404, there is none.
        """
        try:
            return find(self.adapters(), name or self.spec.default_adapter)
        except UnknownAdapterError as error:
            raise ApiError(404, str(error), param="model") from error

    async def facts(self) -> dict[str, Any]:
        """Every adapter, which of them answers where a request names nobody (None so far), mu and gamma, and how the
        engine switches (None where it is not up)."""
        cards, trust, switching = self.adapters(), trust_of_run(self.run), await self._switching()
        default = next((card.name for card in cards if self.spec.default_adapter in (card.name, *card.aliases)), None)
        return {
            "default": default,
            "adapters": [asdict(card) for card in cards],
            "trust": asdict(trust) if trust else None,
            "switching": asdict(switching) if switching else None,
        }

    # -- answers -------------------------------------------------------------------------------------------------

    async def openai(self, route: Route, adapter: str | None, body: dict[str, Any]) -> AsyncIterator[Opening | str]:
        """The opening of an answer, then its chunks where it streams. Read it to its end or close it."""
        card = self.adapter(adapter)
        asked = self._rendered(body) if route == "chat" else self._fitting(body)
        with self._admitted(route, card.name) as seen, self._failures_as_statuses():
            stream = self._engine().options(stream=True).openai.remote(route, card.name, asked, self.spec.deadline_s)
            while (part := await self._within_deadline(anext(stream, None))) is not None:
                if isinstance(part, Opening):
                    seen.status = part.status
                yield part

    async def distribution(self, body: DistributionBody) -> dict[str, Any]:
        """The answer to one question, by every adapter that it names."""
        async with aclosing(self.distributions([body])) as answers:
            answer = await anext(answers)
        if isinstance(answer, ApiError):
            raise answer
        return answer

    async def distributions(
        self, bodies: Sequence[DistributionBody | ApiError]
    ) -> AsyncGenerator[dict[str, Any] | ApiError]:
        """The answers in order, several at work; an error is its own question's answer.

        All that one adapter is asked goes before what the next one is, so that an engine where adapters take turns
        switches once an adapter, and not once for the one that is loaded.
        """
        questions = []
        for body in bodies:
            questions.append(self._question(body))
            await asyncio.sleep(0)  # tokenising holds the loop
        at_once = asyncio.Semaphore(QUESTIONS_AT_ONCE)

        async def ask(name: str, query: DistributionQuery) -> CompletionLogps:
            async with at_once:
                return await self._score(name, query)

        asked = {i: question for i, question in enumerate(questions) if isinstance(question, Question)}
        names = dict.fromkeys(name for question in asked.values() for name in question.adapters)
        tasks = {
            (i, name): asyncio.create_task(ask(name, question.query))
            for name in await self._loaded_first(list(names))
            for i, question in asked.items()
            if name in question.adapters
        }
        try:
            for i, question in enumerate(questions):
                if isinstance(question, ApiError):
                    yield question
                    continue
                try:
                    scored = [await tasks[i, name] for name in question.adapters]
                except ApiError as error:
                    yield error
                else:
                    yield self._answer(question.query, scored)
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)

    async def _score(self, adapter: str, query: DistributionQuery) -> CompletionLogps:
        with self._admitted("distribution", adapter), self._failures_as_statuses():
            scored: list[CompletionLogps] = await self._within_deadline(
                self._engine().score.remote(
                    adapter,
                    prompts=[query.prompt_ids],
                    completions=[query.scored_ids],
                    top_k=query.top_k,
                    deadline_s=self.spec.deadline_s,
                    priority=CLIENT,
                    token_ids=None if query.asked_ids is None else [query.asked_ids],
                )
            )
            return scored[0]

    def _answer(self, query: DistributionQuery, scored: list[CompletionLogps]) -> dict[str, Any]:
        trust, vocabulary = trust_of_run(self.run), len(self._chat.tokenizer)
        answers = [distribution_of(query, one, trust, self._token_text, vocabulary) for one in scored]
        return {"object": "proxy.distribution", **query.facts(), "results": answers}

    async def _loaded_first(self, names: list[str]) -> list[str]:
        switching = await self._switching() if len(names) > 1 else None
        return sorted(names, key=lambda name: switching is None or name != switching.loaded)

    async def _switching(self) -> Switching | None:
        told: Switching | None = await self._or_none(lambda: self._engine().switching.remote(), SWITCHING_WITHIN_S)
        return told

    async def ready(self) -> str:
        """The name of the adapter in the weights, after the engine has made one real token with it."""
        self._require_engine()
        with self._failures_as_statuses():
            async with asyncio.timeout(self.spec.ready_within_s):
                loaded: str = await self._engine().probe.remote(self.spec.ready_within_s)
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

    def _question(self, body: DistributionBody | ApiError) -> Question | ApiError:
        if isinstance(body, ApiError):
            return body
        names = body.adapters or [body.adapter or self.spec.default_adapter]
        try:
            cards = [self.adapter(name) for name in names]
            return Question(list(dict.fromkeys(card.name for card in cards)), self._query(body))
        except ApiError as error:
            return error

    def _query(self, body: DistributionBody) -> DistributionQuery:
        try:
            if body.messages is not None:
                prompt = self._chat.prompt_ids(tuple(m.plain() for m in body.messages))
            else:
                prompt = self._ids(body.prompt)
            if isinstance(body.completion, str) and body.messages is not None:
                completion = self._chat.completion_ids(body.completion)
            else:
                completion = self._ids(body.completion)
        except ProxykdError as error:
            raise ApiError(400, str(error), param="messages") from error
        query = DistributionQuery(prompt, completion, self._chat.stop_token_id, body.top_k, body.token_ids)
        if not prompt:
            raise ApiError(400, "the prompt has no tokens", param="prompt")
        self._require_room(len(prompt), len(query.scored_ids), "completion")
        self._require_known([*prompt, *completion], "prompt")
        if (asked := body.token_ids) is not None:
            if len(asked) != len(query.scored_ids):
                raise ApiError(
                    400,
                    f"token_ids has {len(asked)} lists, and the completion has {len(completion)} tokens; give one list "
                    "for each of them, or without a completion a single one for the next token",
                    param="token_ids",
                )
            self._require_known([i for ids in asked for i in ids], "token_ids")
        return query

    def _require_known(self, token_ids: list[int], param: str) -> None:
        vocabulary = len(self._chat.tokenizer)
        if (largest := max(token_ids, default=0)) >= vocabulary:
            raise ApiError(
                400,
                f"token id {largest} is outside the vocabulary of {vocabulary}: give 0 to {vocabulary - 1}",
                param=param,
            )

    def _ids(self, text: str | list[int] | None) -> list[int]:
        if text is None or isinstance(text, list):
            return text or []
        return list(self._chat.tokenizer.encode(text, add_special_tokens=False))

    def _token_text(self, token_id: int) -> str:
        return self._chat.token_text(token_id)

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
        """Raises ApiError 503 where a run is at work and has no engine up, or trains on the engine's cores."""
        if not self.spec.beside_run:
            return
        live = self._live_state()
        where = f"stage {live.stage or 'between stages'}"
        if not live.engine:
            raise ApiError(
                503, f"the run's engine is not up ({where}); it is during the alignment rounds", retry_after_s=30
            )
        if live.training and self.spec.shares_cores:
            raise ApiError(503, f"the run trains on the engine's cores ({where}); ask again later", retry_after_s=10)

    def _live_state(self) -> LiveState:
        read_at, state = self._live
        if time.monotonic() - read_at > LIVE_FOR_S:
            state = read_live(self.run)
            self._live = (time.monotonic(), state)
        return state

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


@dataclass(frozen=True)
class Question:
    """What several adapters, by their whole names, are asked."""

    adapters: list[str]
    query: DistributionQuery


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
