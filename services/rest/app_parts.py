"""What the REST fronts have in common: OpenAI's errors and streams, health and metrics, a document that is true."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import FastAPI, Response
from fastapi.responses import PlainTextResponse, StreamingResponse
from starlette.types import Lifespan

from actors.engine.openai_front import Opening, Route
from proxykd import __version__
from services.access.keys import Guard
from services.access.refusals import ApiError, body_of, refuse_as_openai_does
from services.rest.docs_page import mount_docs
from services.rest.engine_service import EngineService, ServiceSpec

EVENTS = "text/event-stream"
_ERROR = {"description": "An error as OpenAI shapes it: `error.message` names the value and the fix."}
ERRORS: dict[int | str, dict[str, Any]] = dict.fromkeys((400, 401, 404, 409, 413, 429, 503, 504), _ERROR)


def new_app(spec: ServiceSpec, description: str, lifespan: Lifespan[FastAPI] | None = None) -> FastAPI:
    """An app that answers those who may ask, and refuses as OpenAI's API does."""
    app = FastAPI(
        title="proxykd",
        version=__version__,
        description=description,
        responses=ERRORS,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.add_middleware(Guard, key_digests=spec.key_digests, max_body_bytes=spec.max_body_bytes, host=spec.host)
    refuse_as_openai_does(app)
    mount_docs(app)
    _document_what_is_true(app)
    return app


def health_routes(app: FastAPI, service: EngineService) -> None:
    @app.get("/health", tags=["health"], include_in_schema=False)  # as vLLM calls it, and who asks for vLLM
    @app.get("/healthz", tags=["health"])
    async def healthz() -> dict[str, str]:
        """Alive: this front answers."""
        return {"status": "alive"}

    @app.get("/readyz", tags=["health"])
    async def readyz() -> dict[str, str]:
        """Ready: the engine has just made a real token, with the adapter that is named."""
        return {"status": "ready", "adapter": await service.ready()}

    @app.get("/metrics", tags=["health"], response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        """Prometheus: this front's figures and vLLM's own."""
        return PlainTextResponse(await service.exposition(), media_type="text/plain; version=0.0.4")


def _document_what_is_true(app: FastAPI) -> None:
    """FastAPI documents 422 for every body; here it is 400, in OpenAI's shape."""
    generated = app.openapi

    def openapi() -> dict[str, Any]:
        document = generated()
        for operations in document["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)
        return document

    app.openapi = openapi  # type: ignore[method-assign]


async def openai_answer(
    service: EngineService, route: Route, name: str, body: dict[str, Any], headers: Callable[[Opening], dict[str, str]]
) -> Response:
    """What the model of that whole name answers, whole or as a stream."""
    parts = service.openai(route, name, body)
    opening = await anext(parts)
    assert isinstance(opening, Opening)
    if opening.body is None:
        return StreamingResponse(_events(parts), media_type=EVENTS, headers=headers(opening))
    async for _ in parts:
        """The engine ends its answer."""
    return Response(opening.body, opening.status, headers(opening), "application/json")


async def _events(parts: AsyncIterator[Opening | str]) -> AsyncIterator[str]:
    """The answer's events; a failure after the first becomes an error event, since the status has been sent."""
    try:
        async for part in parts:
            if isinstance(part, str):
                yield part
    except ApiError as error:
        yield f"data: {json.dumps(body_of(error))}\n\n"
        yield "data: [DONE]\n\n"
