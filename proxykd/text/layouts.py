"""Rows of the field's formats as conversations: the messages before the teacher's reply, that reply, its tools."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from proxykd.text.sources import BadRow

Message = dict[str, Any]
"""`role` and `content`, a text; where a row has them, `tool_calls`, `tool_call_id`, `name` and `reasoning_content`."""
ROLES = ("system", "user", "assistant", "tool")
KEPT = ("tool_calls", "tool_call_id", "name", "reasoning_content")
THOUGHTS = re.compile(r"\s*<think>(.*?)(?:</think>\s*|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Conversation:
    """What a row says: the messages before the teacher's reply, that reply, and the functions that it could call."""

    messages: list[Message]
    reply: Message
    tools: tuple[dict[str, Any], ...] = ()


def read_conversation(row: Any, layout: str = "auto") -> Conversation | None:
    """A row in any of the known layouts; None for a row of another model than the one asked for (Nectar).

    Raises:
        BadRow: what is wrong with it.
    """
    if isinstance(row, BadRow):
        raise row
    if not isinstance(row, dict):
        raise BadRow(f"a {type(row).__name__}, not an object")
    return _READERS[layout_of(row) if layout == "auto" else layout](row)


def layout_of(row: dict[str, Any]) -> str:
    """The layout that a row's keys tell."""
    if "messages" in row:
        return "messages"
    if "system_prompt" in row and "question" in row:
        return "openorca"
    if "answers" in row and "prompt" in row:
        return "nectar"
    return "completion"


def split_thoughts(message: Message) -> tuple[str | None, str]:
    """A reply's thoughts and its answer: those in `reasoning_content`, or in `<think>...</think>` at its beginning."""
    content: str = message["content"]
    if isinstance(thoughts := message.get("reasoning_content"), str) and thoughts.strip():
        return thoughts.strip(), content
    found = THOUGHTS.match(content)
    return (None, content) if found is None else (found[1].strip(), content[found.end() :])


def without_thoughts(message: Message) -> Message:
    """An earlier turn as templates that know thoughts write it: its answer alone."""
    if message["role"] != "assistant":
        return message
    kept = {key: value for key, value in message.items() if key != "reasoning_content"}
    return kept | {"content": split_thoughts(message)[1]}


def _messages(row: dict[str, Any]) -> Conversation:
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRow("`messages` is missing or empty")
    clean = [_clean(message) for message in messages]
    if clean[-1]["role"] != "assistant":
        raise BadRow("the last message is not the assistant's")
    return Conversation(_with_system(row, clean[:-1]), clean[-1], _tools(row.get("tools")))


def _clean(message: Any) -> Message:
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        raise BadRow(f"a message without a role of {ROLES}")
    kept = {key: message[key] for key in KEPT if message.get(key)}
    content = message.get("content")
    if content is None and "tool_calls" in kept:
        content = ""
    if isinstance(content, list):
        content = _joined(content)
    if not isinstance(content, str):
        raise BadRow("a message whose content is not text")
    return {"role": message["role"], "content": content, **kept}


def _joined(parts: list[Any]) -> str:
    """The text of content parts, none of which is anything else."""
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            raise BadRow(f"a content part of type {kind}: only text can be rendered")
    return "".join(part["text"] for part in parts)


def _tools(value: Any) -> tuple[dict[str, Any], ...]:
    """The functions that a row offers, as a list or as JSON of one."""
    tools = json.loads(value) if isinstance(value, str) and value.strip() else value or []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise BadRow("`tools` is not a list of functions")
    return tuple(tools)


def _completion(row: dict[str, Any]) -> Conversation:
    prompt = row.get("prompt")
    completion = row.get("completion", row.get("response"))
    if not isinstance(prompt, str) or completion is None:
        raise BadRow(f"neither `messages` nor `prompt` with `completion`; its keys are {sorted(row)}")
    messages = _with_system(row, [{"role": "user", "content": prompt}])
    reply = _reply(completion)
    thoughts = row.get("reasoning_content")
    return Conversation(messages, reply | ({"reasoning_content": thoughts} if thoughts else {}))


def _openorca(row: dict[str, Any]) -> Conversation:
    question = row.get("question")
    if not isinstance(question, str):
        raise BadRow("`question` is missing")
    system = {"system": row.get("system_prompt")}
    return Conversation(_with_system(system, [{"role": "user", "content": question}]), _reply(row.get("response")))


def _nectar(row: dict[str, Any]) -> Conversation | None:
    """Nectar ranks the answers of several models; only GPT-4's are the teacher's."""
    answers = row.get("answers")
    if not isinstance(answers, list) or not isinstance(row.get("prompt"), str):
        raise BadRow("`prompt` or `answers` is missing")
    chosen = next((a for a in answers if isinstance(a, dict) and str(a.get("model", "")).startswith("gpt-4")), None)
    return None if chosen is None else Conversation(_nectar_turns(row["prompt"]), _reply(chosen.get("answer")))


def _nectar_turns(prompt: str) -> list[Message]:
    """Nectar's prompts are `\\n\\nHuman: ...\\n\\nAssistant: ` transcripts, of one turn or several."""
    messages: list[Message] = []
    for part in prompt.split("\n\nHuman: "):
        if not part.strip():
            continue
        question, *replies = part.split("\n\nAssistant:")
        messages.append({"role": "user", "content": question.strip()})
        messages += [{"role": "assistant", "content": r.strip()} for r in replies if r.strip()]
    return messages


def _reply(completion: Any) -> Message:
    if not isinstance(completion, str):
        raise BadRow("the completion is empty")
    return {"role": "assistant", "content": completion}


def _with_system(row: dict[str, Any], messages: list[Message]) -> list[Message]:
    system = row.get("system")
    if not isinstance(system, str) or not system.strip() or (messages[:1] and messages[0]["role"] == "system"):
        return messages
    return [{"role": "system", "content": system}, *messages]


_READERS: dict[str, Callable[[dict[str, Any]], Conversation | None]] = {
    "messages": _messages,
    "completion": _completion,
    "openorca": _openorca,
    "nectar": _nectar,
}
