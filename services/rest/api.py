"""The REST routes: OpenAI's, the proxy's own, health and metrics. `docs/api.md` shows each."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute
from pydantic import ValidationError

from actors.engine.openai_front import Opening, Route
from proxykd.report.adapter_catalogue import AdapterCard
from services.access.refusals import ApiError, body_of, first_problem
from services.dashboard.api import Views, dashboard_api
from services.dashboard.library import Library
from services.dashboard.pages import mount_page
from services.rest.app_parts import health_routes, new_app, openai_answer
from services.rest.proxy_service import ProxyService
from services.rest.schemas import ChatBody, CompletionBody, DistributionBody, SamplingBody

ADAPTER_HEADER = "X-Proxykd-Adapter"
WAITED_HEADER = "X-Proxykd-Adapter-Waited"
"""Seconds for the adapter's turn and its switch."""
NDJSON = "application/x-ndjson"
BATCH_LINES = 1024
NDJSON_BODY = {"requestBody": {"content": {NDJSON: {"schema": {"type": "string"}}}}}


def build_app(service: ProxyService, views: Views) -> FastAPI:
    """`views` gives the Redis behind a run's live stream."""
    app = new_app(service.spec, "The proxy as a service: a window into a model that shows no probabilities.")

    @app.get("/v1/models", tags=["openai"])
    async def models() -> dict[str, Any]:
        """The base and every adapter, each with its round, sha256 and fidelity; the one that answers where a request
        names nobody comes first."""
        cards = sorted(
            service.adapters(), key=lambda card: service.spec.default_adapter not in (card.name, *card.aliases)
        )
        return {"object": "list", "data": [_model_card(card, service) for card in cards]}

    @app.get("/v1/models/{name}", tags=["openai"])
    async def model(name: str) -> dict[str, Any]:
        """One of them, by name or alias."""
        return _model_card(service.adapter(name), service)

    @app.post("/v1/completions", tags=["openai"])
    async def completions(body: CompletionBody) -> Response:
        """OpenAI's completions: text or token-id prompts, echo with the prompt's log-probs, streaming."""
        return await _openai(service, "completions", body)

    @app.post("/v1/chat/completions", tags=["openai"])
    async def chat(body: ChatBody) -> Response:
        """OpenAI's chat, by the proxy's chat template."""
        return await _openai(service, "chat", body)

    proxy = APIRouter(route_class=_batched_by_lines(service), tags=["proxy"])

    @proxy.post("/v1/proxy/distribution", openapi_extra=NDJSON_BODY)
    @proxy.post("/v1/proxy/logits", openapi_extra=NDJSON_BODY)
    async def distribution(body: DistributionBody) -> dict[str, Any]:
        """The proxy's distribution at every completion token, or at the next token where there is no completion.

        Log-probs are logits less their logsumexp, in nats. As `application/x-ndjson`, one object a line, the answers
        come as lines in the same order.
        """
        return await service.distribution(body)

    @proxy.get("/v1/proxy/adapters")
    async def adapters() -> dict[str, Any]:
        """Every adapter with its manifest's facts, which one is the default, mu and gamma of the trust weight, and how
        the engine switches from one to the next."""
        return await service.facts()

    health_routes(app, service)
    app.include_router(proxy)
    app.include_router(dashboard_api(Library.of_run(service.run), views))
    mount_page(app)
    return app


def _batched_by_lines(service: ProxyService) -> type[APIRoute]:
    """A route that takes its JSON body, or as NDJSON one such body a line."""

    class LinesRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            answer_one = super().get_route_handler()

            async def answer(request: Request) -> Response:
                if request.headers.get("content-type", "").split(";")[0].strip().lower() != NDJSON:
                    return await answer_one(request)
                lines = [line for line in (await request.body()).splitlines() if line.strip()]
                if not 0 < len(lines) <= BATCH_LINES:
                    raise ApiError(400, f"{len(lines)} lines; a batch has 1 to {BATCH_LINES}")
                return StreamingResponse(_answers_by_line(service, lines), media_type=NDJSON)

            return answer

    return LinesRoute


async def _answers_by_line(service: ProxyService, lines: list[bytes]) -> AsyncIterator[str]:
    """Answers in the order of the lines; a line's error is its answer."""
    async with aclosing(service.distributions([_body_of(line) for line in lines])) as answers:
        async for answer in answers:
            facts = body_of(answer) if isinstance(answer, ApiError) else answer
            yield json.dumps(facts, allow_nan=False) + "\n"


def _body_of(line: bytes) -> DistributionBody | ApiError:
    try:
        return DistributionBody.model_validate_json(line)
    except ValidationError as error:
        return first_problem(error.errors())


async def _openai(service: ProxyService, route: Route, body: SamplingBody) -> Response:
    name = service.adapter(body.model).name

    def headers(opening: Opening) -> dict[str, str]:
        return {ADAPTER_HEADER: name, WAITED_HEADER: f"{opening.waited_s:.3f}"}

    return await openai_answer(service, route, name, body.engine_body(), headers)


def _model_card(card: AdapterCard, service: ProxyService) -> dict[str, Any]:
    facts = {"round": card.round, "sha256": card.sha256, "fidelity": card.fidelity, "aliases": card.aliases}
    return {
        "id": card.name,
        "object": "model",
        "created": service.started_at,
        "owned_by": "proxykd",
        "parent": card.parent,
        "max_model_len": service.spec.max_length,
        **facts,
    }
