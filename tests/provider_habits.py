"""What providers do, in their own shapes, for the stub to do: refusals, and answers that are not as one would like.

Quoted from bug reports and the providers' pages; proxykd/collection/habits.py is what makes sense of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

Body = dict[str, Any]
ROUTES = ("openai", "azure", "openrouter", "anthropic", "vllm", "ollama", "mistral", "groq")


def _openai(message: str, code: str | None = None, param: str | None = None) -> Body:
    return {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}


def _anthropic(kind: str, message: str) -> Body:
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_011"}


def _vllm(message: str, param: str | None = None) -> Body:
    return {"error": {"message": message, "type": "BadRequestError", "param": param, "code": 400}}


def _fastapi(field: str) -> Body:
    return {"detail": [{"type": "extra_forbidden", "loc": ["body", field], "msg": "Extra inputs are not permitted"}]}


FILTERED = "The response was filtered due to the prompt triggering Azure OpenAI's content management policy."
REFUSALS: dict[str, tuple[int, Body, str | None]] = {
    # of a parameter, where the request has it
    "openai: max_tokens": (
        400,
        _openai(
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
            "unsupported_parameter",
            "max_tokens",
        ),
        "max_tokens",
    ),
    "openai: temperature": (
        400,
        _openai(
            "Unsupported value: 'temperature' does not support 0.5 with this model.", "unsupported_value", "temperature"
        ),
        "temperature",
    ),
    "azure: seed": (422, _fastapi("seed"), "seed"),
    "mistral: seed": (
        422,
        {"object": "error", "message": json.dumps(_fastapi("seed")), "type": "internal_error_proxy", "code": "1000"},
        "seed",
    ),
    "anthropic: max_tokens": (
        400,
        _anthropic(
            "invalid_request_error",
            "max_tokens: 100000 > 8192, which is the maximum allowed number of output tokens for claude-3-5-haiku",
        ),
        "max_tokens",
    ),
    "vllm: logprobs": (
        400,
        _vllm("Requested sample logprobs of 5, which is greater than max allowed: 0", "top_logprobs"),
        None,
    ),
    # of the model or the address
    "openai: model": (
        404,
        _openai("The model `stub-1` does not exist or you do not have access to it.", "model_not_found"),
        None,
    ),
    "azure: deployment": (
        404,
        {"error": {"code": "DeploymentNotFound", "message": "The API deployment for this resource does not exist."}},
        None,
    ),
    "ollama: model": (
        404,
        {"error": {"message": 'model "stub-1" not found, try pulling it first', "type": "api_error"}},
        None,
    ),
    # of the account
    "anthropic: credit": (
        400,
        _anthropic("invalid_request_error", "Your credit balance is too low to access the Anthropic API."),
        None,
    ),
    "openai: quota": (429, _openai("You exceeded your current quota.", "insufficient_quota"), None),
    "openrouter: credits": (402, {"error": {"code": 402, "message": "Insufficient credits"}}, None),
    "azure: network": (
        403,
        {"error": {"code": "403", "message": "Access denied due to Virtual Network/Firewall rules."}},
        None,
    ),
    "anthropic: permission": (403, _anthropic("permission_error", "Your API key does not have permission."), None),
    # of the prompt
    "azure: filter": (
        400,
        {
            "error": {
                "message": FILTERED,
                "type": None,
                "param": "prompt",
                "code": "content_filter",
                "status": 400,
                "innererror": {"code": "ResponsibleAIPolicyViolation"},
            }
        },
        None,
    ),
    "openrouter: flagged": (
        403,
        {
            "error": {
                "code": 403,
                "message": 'stub-1 requires moderation on Stub. Your input was flagged for "violence".',
                "metadata": {"reasons": ["violence"], "flagged_input": "my credit balance is too low"},
            }
        },
        None,
    ),
    "openai: invalid prompt": (400, _openai("Invalid prompt: your prompt was flagged.", "invalid_prompt"), None),
    "openai: too long": (
        400,
        _openai(
            "This model's maximum context length is 8192 tokens. However, your messages resulted in 8227 tokens.",
            "context_length_exceeded",
            "messages",
        ),
        None,
    ),
    "anthropic: blocked": (
        400,
        _anthropic("invalid_request_error", "Output blocked by content filtering policy"),
        None,
    ),
    "anthropic: too long": (
        400,
        _anthropic("invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum"),
        None,
    ),
    "vllm: too long": (400, _vllm("This model's maximum context length is 64 tokens. Please reduce the length."), None),
    "groq: too large": (413, _openai("Request too large for model on tokens per minute.", "rate_limit_exceeded"), None),
    # of whom, nobody says
    "vllm: beside the completion": (
        400,
        _vllm(
            "'max_tokens' or 'max_completion_tokens' is too large: 32. This model's maximum context length is 64 tokens."
        ),
        None,
    ),
    "a bare 400": (400, {"detail": "There was an error parsing the body"}, None),
}
"""Name: HTTP status, body, and the field of the request that it is about (none: every request)."""


def _choice(answer: Body) -> Body:
    choice: Body = answer["choices"][0]
    return choice


def _text(answer: Body) -> str:
    text: str = answer["content"][0]["text"] if "content" in answer else _choice(answer)["message"]["content"]
    return text


def _parts(answer: Body) -> None:
    _choice(answer)["message"]["content"] = [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}] + [
        {"type": "text", "text": piece} for piece in (_text(answer)[:7], _text(answer)[7:])
    ]


def _surrogate(answer: Body) -> None:
    if "content" in answer:
        answer["content"][0]["text"] += " \ud83d"
    else:
        _choice(answer)["message"]["content"] += " \ud83d"


def _ended(reason: str | None) -> Callable[[Body], None]:
    def change(answer: Body) -> None:
        if "content" in answer:
            answer["stop_reason"] = reason
        else:
            _choice(answer)["finish_reason"] = reason

    return change


def _no_usage(answer: Body) -> None:
    del answer["usage"]


def _null_usage(answer: Body) -> None:
    answer["usage"] = dict.fromkeys(answer["usage"])


def _nulls(answer: Body) -> None:
    answer |= {"id": None, "model": None, "system_fingerprint": None}


def _bad_logprobs(answer: Body) -> None:
    _choice(answer)["logprobs"] = {"content": [{"token": None, "logprob": "-inf"}]}


ANSWERS: dict[str, Callable[[Body], None]] = {
    "content in parts": _parts,
    "lone surrogate": _surrogate,
    "no usage": _no_usage,
    "usage of nulls": _null_usage,
    "no id, no model": _nulls,
    "log-probs of nothing": _bad_logprobs,
    "ended by error": _ended("error"),
    "ended by nothing": _ended(None),
    "ended by abort": _ended("abort"),
    "ended by model_context_window_exceeded": _ended("model_context_window_exceeded"),
    "ended by max_tokens": _ended("max_tokens"),
    "ended by MAX_TOKENS": _ended("MAX_TOKENS"),
    "ended by eos": _ended("eos"),
    "ended by content_filter": _ended("content_filter"),
}
"""What each does to a good answer."""

ERRORS_IN_PLACE: dict[str, Body] = {
    "200: flagged": {"error": {"code": 403, "message": "Your input was flagged."}},
    "200: model": {"error": "model 'stub-1' not found, try pulling it first"},
    "200: unknown": {"error": {"message": "the stars are not right"}},
    "200: upstream": {"error": {"code": 502, "message": "Provider returned error"}},
}
"""An error's body with status 200."""


def as_events(answer: Body) -> bytes:
    """A chat completion as the stream of events that some gateways always send."""
    choice = _choice(answer)
    base = {"id": answer["id"], "model": answer["model"], "object": "chat.completion.chunk"}
    words = choice["message"]["content"].split(" ")
    deltas = [{"content": word if at == 0 else f" {word}"} for at, word in enumerate(words)]
    chunks = [base | {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    chunks.append(base | {"choices": [{"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}]})
    chunks.append(base | {"choices": [], "usage": answer["usage"]})
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks).encode() + b"data: [DONE]\n\n"
