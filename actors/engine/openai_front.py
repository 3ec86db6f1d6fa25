"""vLLM's own OpenAI serving, under the run's adapter names. With proxy_engine.py, the only module that imports vllm."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Literal

from actors.engine.proxy_engine import CLIENT, ProxyEngine

Route = Literal["completions", "chat"]


@dataclass(frozen=True)
class Opening:
    """The first thing of an answer: its status, and the whole body unless chunks follow (None)."""

    status: int
    body: str | None
    waited_s: float = 0.0
    """For the adapter's turn and its switch."""


class OpenAIFront:
    """Answers validated request bodies as OpenAI's API would, from one adapter each."""

    def __init__(self, engine: ProxyEngine):
        from vllm.renderers.online_renderer import OnlineRenderer

        self._engine = engine
        self._renderer = OnlineRenderer(
            engine.client.model_config,
            engine.client.renderer,
            request_logger=None,
            chat_template=None,
            chat_template_content_format="string",
        )

    async def answer(
        self, route: Route, adapter: str, body: dict[str, Any], deadline_s: float
    ) -> AsyncIterator[Opening | str]:
        """One Opening, then server-sent events where the body asks to stream. A chat's body carries its prompt as
        `prompt_token_ids`.

        Raises:
            UnknownAdapterError: no finished adapter of that name.
            TimeoutError: the deadline passed; the request is aborted.
            EngineError: the engine died.
        """
        from vllm.entrypoints.serve.engine.protocol import ErrorResponse

        clock = asyncio.get_running_loop().time
        began = clock()
        end = began + deadline_s
        async with AsyncExitStack() as stack:
            # Not around the yields: a timeout belongs to one task, and between two chunks another may run.
            async with asyncio.timeout_at(end):
                lora = await stack.enter_async_context(self._engine.answering_as(adapter, CLIENT))
                waited_s = clock() - began
                result = await self._create(route, adapter, body, lora)
            if isinstance(result, ErrorResponse):
                yield Opening(result.error.code, result.model_dump_json(), waited_s)
            elif not body.get("stream"):
                if body.get("max_tokens") == 0:  # vLLM draws one for the prompt's log-probs, and leaves it out
                    result.usage.completion_tokens, result.usage.total_tokens = 0, result.usage.prompt_tokens
                yield Opening(200, result.model_dump_json(), waited_s)
            else:
                yield Opening(200, None, waited_s)
                while True:
                    async with asyncio.timeout_at(end):
                        chunk = await anext(result, None)
                    if chunk is None:
                        break
                    yield chunk

    async def _create(self, route: Route, adapter: str, body: dict[str, Any], lora: Any) -> Any:
        """vLLM's answer: a response, an ErrorResponse, or a stream. What it raises is mapped as its server maps it."""
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
        from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
        from vllm.entrypoints.openai.completion.protocol import CompletionRequest
        from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
        from vllm.entrypoints.openai.models.protocol import BaseModelPath
        from vllm.entrypoints.openai.models.serving import OpenAIServingModels
        from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
        from vllm.exceptions import VLLMError
        from vllm.v1.engine.exceptions import EngineDeadError

        client = self._engine.client
        path = BaseModelPath(name=adapter if lora is None else "base", model_path=client.model_config.model)
        models = OpenAIServingModels(client, [path])
        if lora is not None:
            models.lora_requests[adapter] = lora
        common: dict[str, Any] = {"models": models, "online_renderer": self._renderer, "request_logger": None}
        fields = {**body, "model": adapter, "priority": CLIENT}
        if (prompt_ids := fields.pop("prompt_token_ids", None)) is not None:
            # Given here, vLLM takes them for the prompt: its own rendering makes control tokens of what a text spells.
            fields["kv_transfer_params"] = {"prompt_token_ids": prompt_ids}
        try:
            if route == "completions":
                serving = OpenAIServingCompletion(client, **common)
                return await serving.create_completion(CompletionRequest.model_validate(fields))
            chat = OpenAIServingChat(
                client, response_role="assistant", chat_template=None, chat_template_content_format="string", **common
            )
            return await chat.create_chat_completion(ChatCompletionRequest.model_validate(fields))
        except EngineDeadError:
            raise
        except (ValueError, TypeError, OverflowError, NotImplementedError, VLLMError) as error:
            return create_error_response(error)
