"""A local model behind an OpenAI-compatible chat endpoint that returns text only: the stand-in for a proprietary API.

It knows no field that would give a probability away: a request that asks for log-probs is refused with 400.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, Literal

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from ray import serve

from actors.engine.proxy_engine import EngineSpec, ProxyEngine
from proxykd.errors import ProxykdError
from proxykd.text.chat import ChatFormat
from proxykd.text.tokenizer import load_tokenizer
from services.access.keys import is_loopback, misdirected
from services.access.refusals import error_body

SEALED = ("logprobs", "top_logprobs", "prompt_logprobs", "logit_bias", "return_token_ids", "return_tokens_as_token_ids")


class ChatMessage(BaseModel):
    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "user", "assistant"]
    content: str


class ChatRequest(BaseModel):
    """The part of OpenAI's chat request that a text-only API needs. Any other field is refused by name."""

    model_config = ConfigDict(extra="forbid")
    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int = Field(256, ge=1)
    temperature: float = Field(1.0, ge=0.0, le=2.0)
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    seed: int | None = None
    n: Literal[1] = 1
    stream: Literal[False] = False
    logprobs: Literal[False] | None = None
    top_logprobs: None = None


app = FastAPI(title="Sealed teacher", description="Text only, as a proprietary API.")


@app.middleware("http")
async def only_from_this_machine(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """The run's own collection asks from here; whoever else the port is open to has no business with it."""
    if request.client is None or not is_loopback(request.client.host):
        return _refusal("the sealed teacher answers its own machine alone", status=403)
    return misdirected(request.headers, request.method, "127.0.0.1") or await call_next(request)


def _refusal(message: str, param: str | None = None, status: int = 400) -> JSONResponse:
    return JSONResponse(error_body(message, "invalid_request_error", param), status_code=status)


@app.exception_handler(RequestValidationError)
async def refuse_invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    param = str(first["loc"][-1])
    if param in SEALED:
        return _refusal(f"{param} is not available: this model returns text only", param)
    return _refusal(f"{param}: {first['msg']}", param)


@serve.deployment
@serve.ingress(app)
class SealedTeacherServer:
    """One engine without adapters, reached over HTTP alone."""

    async def __init__(self, spec: EngineSpec, model_name: str):  # type: ignore[misc]  # Serve awaits it
        self._engine = ProxyEngine(spec)
        self._base = spec.adapter_name(None)
        self._max_length = spec.max_length
        self._chat = ChatFormat(load_tokenizer(spec.model))
        self._model = model_name

    @app.get("/v1/models")
    async def models(self) -> dict[str, Any]:
        return {"object": "list", "data": [{"id": self._model, "object": "model", "owned_by": "sealed"}]}

    @app.post("/v1/chat/completions")
    async def chat(self, request: ChatRequest) -> Any:
        if request.model != self._model:
            return _refusal(f"the model {request.model!r} does not exist; ask for {self._model!r}", "model", 404)
        try:
            prompt = self._chat.prompt_ids(tuple(m.model_dump() for m in request.messages))
        except ProxykdError as error:
            return _refusal(str(error), "messages")
        room = self._max_length - len(prompt)
        if room < 1:
            return _refusal(f"the prompt has {len(prompt)} tokens, the limit is {self._max_length - 1}", "messages")
        try:
            [generation] = await self._engine.generate(
                self._base,
                [prompt],
                max_tokens=[min(request.max_tokens, room)],
                seeds=[request.seed],
                deadline_s=240.0,
                temperature=request.temperature,
                top_p=request.top_p,
            )
        except TimeoutError:
            return _refusal("the model did not answer within its deadline; try again", status=503)
        return self._completion(prompt, generation.token_ids, generation.stopped)

    def _completion(self, prompt: list[int], token_ids: list[int], stopped: bool) -> dict[str, Any]:
        message = {"role": "assistant", "content": self._chat.decode(token_ids)}
        return {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": self._model,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop" if stopped else "length"}],
            "usage": {
                "prompt_tokens": len(prompt),
                "completion_tokens": len(token_ids),
                "total_tokens": len(prompt) + len(token_ids),
            },
        }
