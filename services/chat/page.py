"""`proxykd chat --page`: a column a model, for a browser on this machine. The page keeps the conversations."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import anyio
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import StreamingResponse

from actors.cluster.http_options import HttpOptions
from proxykd.errors import ProxykdError
from proxykd.models.speaker import Said, Sampling, Speaker, answer
from services.access.keys import Guard
from services.access.refusals import ApiError, refuse_as_openai_does
from services.chat.conversations import WHO
from services.dashboard.pages import STATIC as DASHBOARD
from services.dashboard.pages import Page

STATIC = Path(__file__).parent / "static"
MAX_BODY_BYTES = 2**20


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Turn(_Body):
    role: Literal["system", "user", "assistant"]
    content: str


class Question(_Body):
    """The conversations to go on with, by model."""

    conversations: Annotated[dict[str, Annotated[list[Turn], Field(min_length=1)]], Field(min_length=1)]
    temperature: Annotated[float, Field(ge=0, le=5)] = 0.0
    max_tokens: Annotated[int, Field(ge=1)] = 256


def chat_app(run_id: str, speakers: Mapping[str, Speaker], sampling: Sampling, host: str) -> FastAPI:
    """Returns the page and its two routes; `sampling` is what the page begins with.

    `host` is the address that it is bound to: requests by another name are refused (Guard).
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, key_digests=(), max_body_bytes=MAX_BODY_BYTES, host=host)
    refuse_as_openai_does(app)
    one_at_a_time = asyncio.Lock()

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        """The run, its models here, and how they are asked unless told otherwise."""
        return {"run": run_id, "models": [{"name": name, "who": WHO[name]} for name in speakers], **asdict(sampling)}

    @app.post("/v1/answers")
    def answers(question: Question) -> StreamingResponse:
        """A line of JSON a token, with its model's name, as each comes. Whoever closes the connection stops them."""
        if unknown := [name for name in question.conversations if name not in speakers]:
            raise ApiError(400, f"{run_id} has no {unknown[0][:40]!r} here; it has {', '.join(speakers)}")
        turns = {name: [turn.model_dump() for turn in said] for name, said in question.conversations.items()}
        try:
            said = answer(speakers, turns, Sampling(question.temperature, question.max_tokens))
        except ProxykdError as error:
            raise ApiError(400, str(error)) from error
        return StreamingResponse(_sent(said, one_at_a_time), media_type="application/x-ndjson")

    app.mount("/dashboard", Page(DASHBOARD))
    app.mount("/", Page(STATIC))
    return app


async def _sent(said: Iterator[tuple[str, Said]], turn: asyncio.Lock) -> AsyncIterator[str]:
    async with turn:
        while (one := await anyio.to_thread.run_sync(next, said, None)) is not None:
            yield json.dumps({"model": one[0], **asdict(one[1])}) + "\n"


def serve_chat(run_id: str, speakers: Mapping[str, Speaker], sampling: Sampling, http: HttpOptions) -> None:
    """Shows the page on a port that is free. Blocks until Ctrl-C."""
    print(f"{', '.join(speakers)} of {run_id}: http://{http.address}/ (Ctrl-C stops it)", flush=True)
    app = chat_app(run_id, speakers, sampling, http.host)
    config = uvicorn.Config(app, host=http.host, port=http.port, log_level="warning", timeout_graceful_shutdown=1)
    uvicorn.Server(config).run()
