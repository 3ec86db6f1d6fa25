"""Rows of the field's formats as conversations: the messages before the teacher's reply, that reply, its tools."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from proxykd.text.sources import BadRow, parsed

Message = dict[str, Any]
"""`role` and `content`, a text; where a row has them, `tool_calls`, `tool_call_id`, `name` and `reasoning_content`."""
ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant",
    "tool": "tool", "function_response": "tool", "observation": "tool",
}  # fmt: skip
"""By OpenAI's words, and by those of ShareGPT and its kin."""
KEPT = ("tool_calls", "tool_call_id", "name", "reasoning_content")
THOUGHTS = re.compile(r"\s*<think>(.*?)(?:</think>\s*|\Z)", re.DOTALL)


WITHOUT_REPLY = {
    "messages": "the last message is not the assistant's",
    "completion": "neither `messages` nor `prompt` with `completion`; its keys are {keys}",
    "openorca": "`response` is missing",
}
"""What a row of each layout lacks that has no reply; one of Nectar's is another model's."""


@dataclass(frozen=True)
class Conversation:
    """What a row says: the messages before the teacher's reply, that reply, and the functions that it could call."""

    messages: list[Message]
    reply: Message | None
    """None where the row has none: prompts need none."""
    tools: tuple[dict[str, Any], ...] = ()


def read_conversation(row: Any, layout: str = "auto") -> Conversation:
    """A row in any of the known layouts.

    Raises:
        BadRow: what is wrong with it.
    """
    if isinstance(row, BadRow):
        raise row
    if not isinstance(row, dict):
        raise BadRow(f"a {type(row).__name__}, not an object")
    return _READERS[layout_of(row) if layout == "auto" else layout](row)


def layout_of(row: Any) -> str:
    """The layout that a row's keys tell. What is null or an empty list counts as absent: tables fill with these."""
    if not isinstance(row, dict):
        return "completion"
    if row.get("messages") or row.get("conversations"):
        return "messages"
    if "system_prompt" in row and row.get("question") is not None:
        return "openorca"
    if row.get("prompt") is not None and _are_ranked(row.get("answers")):
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
    turns = _turns(row.get("messages") or row.get("conversations"), "messages")
    reply = turns.pop() if turns[-1]["role"] == "assistant" else None
    return Conversation(_with_system(row, turns), reply, _tools(row.get("tools")))


def _turns(value: Any, name: str) -> list[Message]:
    """A list of messages, or JSON of one."""
    turns = parsed(value) if isinstance(value, str) else value
    if not isinstance(turns, list) or not turns:
        raise BadRow(f"`{name}` is missing, empty or no list")
    return [_clean(message) for message in turns]


def _clean(message: Any) -> Message:
    """A message in OpenAI's words; ShareGPT has `from` and `value` instead."""
    if not isinstance(message, dict):
        raise BadRow(f"a message is a {type(message).__name__}, not an object")
    said = _first(message, "role", "from")
    role = ROLES.get(said.strip().lower()) if isinstance(said, str) else None
    if role is None:
        raise BadRow(f"a message of the role {said!r:.40}, which is none of {', '.join(ROLES)}")
    kept = {key: message[key] for key in KEPT if message.get(key)}
    if "tool_calls" in kept:
        kept["tool_calls"] = list(_functions(kept["tool_calls"], "tool_calls"))
    content = _first(message, "content", "value")
    if content is None and "tool_calls" in kept:
        content = ""
    if isinstance(content, list):
        content = _joined(content)
    if not isinstance(content, str):
        raise BadRow("a message whose content is not text")
    return {"role": role, "content": content, **kept}


def _first(row: dict[str, Any], *names: str) -> Any:
    """The first of some keys that is there."""
    return next((row[name] for name in names if row.get(name) is not None), None)


def _joined(parts: list[Any]) -> str:
    """The text of content parts, none of which is anything else."""
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            raise BadRow(f"a content part of type {kind}: only text can be rendered")
    return "".join(part["text"] for part in parts)


def _tools(value: Any) -> tuple[dict[str, Any], ...]:
    """The functions that a row offers, as a list or as JSON of one."""
    given = parsed(value) if isinstance(value, str) and value.strip() else value
    return _functions(given, "tools") if given else ()


def _functions(value: Any, name: str) -> tuple[dict[str, Any], ...]:
    """Functions, or calls of some: each with a name, bare or under `function`."""
    one_by_one = value if isinstance(value, list) else [None]
    for one in one_by_one:
        function = one.get("function", one) if isinstance(one, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadRow(f"`{name}` is not a list of functions")
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadRow(f"`{name}` is nothing that JSON can hold: {error}") from None
    return tuple(one_by_one)


def _completion(row: dict[str, Any]) -> Conversation:
    """Texts, or, as TRL has it, lists of messages."""
    prompt, completion = row.get("prompt"), _first(row, "completion", "response")
    if isinstance(prompt, str):
        messages: list[Message] = [{"role": "user", "content": prompt}]
    elif isinstance(prompt, list):
        messages = _turns(prompt, "prompt")
    else:
        raise BadRow(WITHOUT_REPLY["completion"].format(keys=sorted(row)))
    if isinstance(completion, list):
        *between, last = _turns(completion, "completion")
        if last["role"] != "assistant":
            raise BadRow("the last message of `completion` is not the assistant's")
        messages += between
        reply: Message | None = last
    else:
        reply = _reply(completion)
    if reply is not None and (thoughts := row.get("reasoning_content")):
        reply = {"reasoning_content": thoughts} | reply
    return Conversation(_with_system(row, messages), reply, _tools(row.get("tools")))


def _openorca(row: dict[str, Any]) -> Conversation:
    question = row.get("question")
    if not isinstance(question, str):
        raise BadRow("`question` is missing")
    return Conversation(_with_system(row, [{"role": "user", "content": question}]), _reply(row.get("response")))


def _nectar(row: dict[str, Any]) -> Conversation:
    """Nectar ranks the answers of several models; only GPT-4's are the teacher's."""
    answers: Any = row.get("answers")
    if not _are_ranked(answers) or not isinstance(row.get("prompt"), str):
        raise BadRow("`prompt` or `answers` is missing, or no list of each model's answer")
    chosen = (a.get("answer") for a in answers if str(a["model"]).startswith("gpt-4"))
    return Conversation(_nectar_turns(row["prompt"]), _reply(next(chosen, None)))


def _are_ranked(answers: Any) -> bool:
    """Whether answers are Nectar's: what else is called so, a quiz's for one, is not."""
    return isinstance(answers, list) and bool(answers) and all(isinstance(a, dict) and "model" in a for a in answers)


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


def _reply(completion: Any) -> Message | None:
    if completion is not None and not isinstance(completion, str):
        raise BadRow(f"the completion is a {type(completion).__name__}, not text")
    return None if completion is None else {"role": "assistant", "content": completion}


def _with_system(row: dict[str, Any], messages: list[Message]) -> list[Message]:
    """The messages after the row's own system message, unless they begin with one."""
    system = _first(row, "system", "system_prompt")
    if system is not None and not isinstance(system, str):
        raise BadRow(f"the system message is a {type(system).__name__}, not text")
    if not system or not system.strip() or (messages[:1] and messages[0]["role"] == "system"):
        return messages
    return [{"role": "system", "content": system}, *messages]


_READERS: dict[str, Callable[[dict[str, Any]], Conversation]] = {
    "messages": _messages,
    "completion": _completion,
    "openorca": _openorca,
    "nectar": _nectar,
}
