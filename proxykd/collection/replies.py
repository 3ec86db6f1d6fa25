"""From an answer's JSON to a Reply, in each API's shape."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from proxykd.collection.failures import Body, Transient, failure_of, storable
from proxykd.collection.habits import REFUSED, UNFINISHED, ended
from proxykd.collection.requests import Reply

MOST_TOKENS = 2**31 - 1
NOT_UNDERSTOOD = (KeyError, TypeError, ValueError, AttributeError, IndexError)


def answer_of(response: Any) -> Any:
    """Returns the JSON of an HTTP response; of a stream of events, which nobody asked for, the answer that they add up
    to.

    Raises:
        Transient: it is neither.
    """
    kind = response.headers.get("content-type", "no content type")
    try:
        if kind.startswith("text/event-stream"):
            return _added_up(list(_events(response.text)))
        return json.loads(response.content)
    except (*NOT_UNDERSTOOD, RecursionError):
        raise Transient(f"the answer ({kind}) is no JSON: {response.text[:100]!r}", charged=True) from None


def parse_chat(answer: Any, model: str) -> Reply:
    """Returns the reply in a chat completion's JSON; `model` was asked, should the answer not name any.

    Raises:
        Failure: it is an error in an answer's place, or none of both (Transient).
    """
    try:
        if answer.get("error") and not answer.get("choices"):
            raise failure_of(None, {}, answer, paid=True)
        [choice, *_] = answer["choices"]
        message = choice["message"]
        text, refusal = _text(message.get("content")), _text(message.get("refusal"))
        if choice.get("error") and not text:
            raise failure_of(None, {}, choice, paid=True)
        usage = answer.get("usage") or {}
        return Reply(
            text=text or refusal,
            finish_reason=REFUSED if refusal and not text else ended(choice.get("finish_reason")),
            provider_reason=_name(choice.get("native_finish_reason")) or _name(choice.get("finish_reason")),
            model=_name(answer.get("model")) or model,
            request_id=_name(answer.get("id")),
            prompt_tokens=_tokens(usage.get("prompt_tokens")),
            completion_tokens=_tokens(usage.get("completion_tokens"), anything=bool(text or refusal)),
            top_logprobs=_top_logprobs(choice),
        )
    except NOT_UNDERSTOOD as error:
        raise Transient(f"the answer is no chat completion ({error!r}): {json.dumps(answer)[:200]}", True) from None


def parse_message(answer: Any, model: str) -> Reply:
    """Returns the reply in a message's JSON, of Anthropic's Messages API; `model` was asked, should it not name any.

    Raises:
        Failure: it is an error in an answer's place, or none of both (Transient).
    """
    try:
        if answer.get("error"):
            raise failure_of(None, {}, answer, paid=True)
        text = _text(answer["content"])
        usage = answer.get("usage") or {}
        return Reply(
            text=text,
            finish_reason=ended(answer.get("stop_reason")),
            provider_reason=_name(answer.get("stop_reason")),
            model=_name(answer.get("model")) or model,
            request_id=_name(answer.get("id")),
            prompt_tokens=_tokens(usage.get("input_tokens")),
            completion_tokens=_tokens(usage.get("output_tokens"), anything=bool(text)),
        )
    except NOT_UNDERSTOOD as error:
        raise Transient(f"the answer is no message ({error!r}): {json.dumps(answer)[:200]}", True) from None


def _text(content: Any) -> str:
    """A message's text: as it is, or what of its parts is text (thoughts and tools are not)."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise TypeError(f"{content!r:.100} is no text")
    return "".join(part if isinstance(part, str) else _text(part.get("text")) for part in content if _is_text(part))


def _is_text(part: Any) -> bool:
    return isinstance(part, str) or part.get("type", "text") in ("text", "output_text")


def _name(value: Any) -> str:
    return storable(value) if isinstance(value, str) else ""


def _tokens(value: Any, anything: bool = True) -> int | None:
    """A count of tokens; None where it is absent or cannot be one: of `anything` at all there are more than none."""
    told = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_TOKENS
    return value if told and (value or not anything) else None


def _top_logprobs(choice: Body) -> list[Body] | None:
    """Each token with the most likely ones at its place, as OpenAI gives them; None where that is not so."""
    try:
        content = (choice.get("logprobs") or {}).get("content")
        return [_place(one) for one in content] if content else None
    except NOT_UNDERSTOOD:  # the text is worth no less
        return None


def _place(one: Body) -> Body:
    top = [[_token(other), _logprob(other)] for other in one.get("top_logprobs") or []]
    return {"token": _token(one), "logprob": _logprob(one), "top": top}


def _token(one: Body) -> str:
    if not isinstance(token := one["token"], str):
        raise TypeError(f"{token!r:.100} is no token")
    return token


def _logprob(one: Body) -> float:
    if not math.isfinite(logprob := float(one["logprob"])):
        raise ValueError(f"{logprob} is no log-prob")
    return logprob


def _events(text: str) -> Iterator[Body]:
    for line in text.splitlines():
        if line.startswith("data:") and (data := line.removeprefix("data:").strip()) != "[DONE]":
            yield json.loads(data)


def _added_up(events: list[Body]) -> Body:
    """The chat completion that OpenAI's chunks make. One that stops without a finish reason stays unfinished."""
    answer: Body = {"choices": []}
    text, reason = "", None
    for event in events:
        answer |= {key: event[key] for key in ("id", "model", "usage", "error") if event.get(key)}
        for choice in event.get("choices") or []:
            text += (choice.get("delta") or {}).get("content") or ""
            reason = choice.get("finish_reason") or reason
            answer["choices"] = [{"message": {"content": text}, "finish_reason": reason or UNFINISHED}]
    return answer
