"""What the proxy's REST routes ask: which adapters there are, and the distributions of the engine behind Serve."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from typing import Any

from actors.engine.proxy_engine import CLIENT, Switching
from actors.telemetry.live_state import LiveState, read_live
from proxykd.data.label_shards import CompletionLogps
from proxykd.errors import ProxykdError
from proxykd.report.adapter_catalogue import AdapterCard, catalogue, find, trust_of_run
from proxykd.runs.adapter_names import UnknownAdapterError
from proxykd.runs.run_directory import RunDirectory
from services.access.refusals import ApiError
from services.rest.distribution import DistributionQuery, distribution_of
from services.rest.engine_service import EngineService, ServiceSpec
from services.rest.schemas import DistributionBody

QUESTIONS_AT_ONCE = 16
"""Of one request."""
SWITCHING_WITHIN_S = 2.0
LIVE_FOR_S = 0.5
"""How long one look at the run's live state is good for."""


class ProxyService(EngineService):
    """The proxy's engine: it knows from the run directory whether it is up and free for clients."""

    def __init__(self, spec: ServiceSpec, engine: Callable[[], Any]):
        """`engine` gives the Serve handle of the engine's deployment; it may raise while there is none."""
        super().__init__(spec, engine, RunDirectory(spec.run).models / "proxy")
        self._live: tuple[float, LiveState] = (0.0, LiveState())

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

    # -- the parts -----------------------------------------------------------------------------------------------

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


@dataclass(frozen=True)
class Question:
    """What several adapters, by their whole names, are asked."""

    adapters: list[str]
    query: DistributionQuery
