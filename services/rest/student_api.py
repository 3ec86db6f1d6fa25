"""The student's REST routes: OpenAI's, health and metrics. `docs/serve-student.md` says what is the student's about
them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Response
from fastapi.responses import StreamingResponse

from actors.engine.openai_front import Opening
from services.rest.app_parts import EVENTS, health_routes, new_app, openai_answer
from services.rest.schemas import ChatBody, CompletionBody
from services.rest.student_service import ALIAS, StudentService, as_events


def build_student_app(service: StudentService) -> FastAPI:
    @asynccontextmanager
    async def closing(_: FastAPI) -> AsyncIterator[None]:
        yield
        await service.close()

    app = new_app(service.spec, "The student as a service.", closing)

    @app.get("/v1/models", tags=["openai"])
    async def models() -> dict[str, Any]:
        """The student."""
        return {"object": "list", "data": [_model_card(service)]}

    @app.get("/v1/models/{name}", tags=["openai"])
    async def model(name: str) -> dict[str, Any]:
        """The student, by its name or `student`."""
        service.whole_name(name)
        return _model_card(service)

    @app.post("/v1/completions", tags=["openai"])
    async def completions(body: CompletionBody) -> Response:
        """OpenAI's completions: text or token-id prompts, echo with the prompt's log-probs, streaming. Never the
        teacher's."""
        name = service.whole_name(body.model)
        return await openai_answer(service, "completions", name, service.body_of(body), _none)

    @app.post("/v1/chat/completions", tags=["openai"])
    async def chat(body: ChatBody) -> Response:
        """OpenAI's chat, by the student's chat template; with a fall-back, `proxykd` in the answer says whose it is."""
        name = service.whole_name(body.model)
        if not service.falls_back(body):
            mark = service.without_doubt
            return await openai_answer(
                service, "chat", name, service.body_of(body), lambda _: mark.headers() if mark else {}
            )
        opening, said, marked = await service.chat(body)
        headers = marked.headers() if marked else {}
        if body.stream and marked:
            with_usage = bool(body.stream_options and body.stream_options.include_usage)
            return StreamingResponse(as_events(said, with_usage), media_type=EVENTS, headers=headers)
        return Response(json.dumps(said), opening.status, headers, "application/json")

    health_routes(app, service)
    return app


def _none(_: Opening) -> dict[str, str]:
    return {}


def _model_card(service: StudentService) -> dict[str, Any]:
    return {
        "id": service.name,
        "object": "model",
        "created": service.started_at,
        "owned_by": "proxykd",
        "max_model_len": service.spec.max_length,
        "sha256": service.sha256,
        "aliases": [ALIAS],
    }
