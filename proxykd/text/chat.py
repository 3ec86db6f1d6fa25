"""From conversations to token ids, by the model's own chat template, once.

A prompt's ids are those of its rendering, which is what serving encodes. A completion's are those that the rendering of
the whole conversation has after them, as long as the template keeps the teacher's text as it is; where it does not (it
trims, say), or where one token would span prompt and completion, the teacher's text wins, encoded as it goes on there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from proxykd.errors import TemplateError
from proxykd.text.chat_template import PROBE, QUESTION
from proxykd.text.control_tokens import Encoded, TextEncoder
from proxykd.text.corpus import Record
from proxykd.text.layouts import Message

THOUGHT = "Six and one."
THOUGHT_TAGS = ("<think>\n", "\n</think>\n\n")
"""Around the thoughts of a reply where the template has no form of its own for them."""
UNDECODED = "\ufffd"
"""What tokenizers write for bytes that are no character, or not yet."""


@dataclass(frozen=True)
class Turn:
    """What the template writes around the text of a reply, from the prompt's end to the token that ends the turn."""

    lead: str
    thought_lead: tuple[str, str]
    """Before and after the thoughts of a reply that has some, in place of `lead`."""
    ending: str
    stop: str


@dataclass(frozen=True)
class Written:
    """A reply as the template writes it, control tokens spelt: `opening` through the last control token before the
    teacher's text, `lead` from there to it, the `text`, and the `separator` before the stop token."""

    opening: str
    lead: str
    text: str
    separator: str
    stop: str
    """Empty where the teacher did not end the reply."""


class ChatFormat:
    """Renders prompts and completions, and knows the token that ends a turn.

    Rendering a conversation with its completion must give the rendered prompt, then the completion, then a single stop
    token: the template round-trips.
    """

    def __init__(self, tokenizer: Any):
        """Raises:
        TemplateError: the template does not round-trip, or renders a prompt as nothing.
        """
        self.tokenizer = tokenizer
        self._encoder = TextEncoder(tokenizer)
        prompt = self._render(list(QUESTION), generate=True)
        self._turn = self._probe_turn(prompt)
        self.stop_token_id = self._encoder.control[self._turn.stop]
        # Control tokens cut a text: what stands before the last of them has no part in how a completion is encoded.
        self._anchor = prompt[self._encoder.last_spelt(prompt) :]
        if not self._anchor:
            raise TemplateError("the chat template renders a prompt as nothing; name another with chat_template")
        self._before = tuple(self._encoder.encode(self._anchor).ids)

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()) -> list[int]:
        """Raises TemplateError where the template refuses the conversation, or leaves a part of it out."""
        return self._encoder.encode(self._prompt(messages, tools)).ids

    def completion_ids(self, completion: str, stopped: bool = True, thoughts: str | None = None) -> list[int]:
        """y as it follows a prompt: with what the template writes before it, the teacher's thoughts where given, and
        the stop token if the teacher ended it."""
        return self._following(self._reply(completion, stopped, thoughts)).ids

    def reply_ids(self, record: Record) -> list[int]:
        """A record's y, which may be a call of tools instead of text. Raises as `prompt_ids` does."""
        if record.tool_calls:
            return self._following(self._call(record)).ids
        return self.completion_ids(record.completion, record.stopped, record.reasoning)

    def written(self, record: Record) -> Written:
        """What `reply_ids` encodes. A call of tools is the template's own writing, without a text of the teacher's.

        Raises as `reply_ids` does.
        """
        turn, text = self._turn, ""
        if record.tool_calls:
            lead, ending = self._call(record).removesuffix(turn.stop if record.stopped else ""), turn.stop
        else:
            lead, text, ending = self._lead(record.reasoning), record.completion, turn.ending
        opening, rest = (self._encoder.unescape(part) for part in self._encoder.split_after_last(lead))
        separator = ending.removesuffix(turn.stop)
        return Written(opening, rest, text, *((separator, turn.stop) if record.stopped else ("", "")))

    def spans(self, completion: str) -> list[tuple[int, int]]:
        """Returns, of each token of `completion_ids(completion, stopped=False)`, its first character in `completion`
        and the one after its last. What the template writes before it lies below 0, and counts to the token that it
        shares.
        """
        lead = len(self._encoder.named(self._turn.lead))
        found = self._following(self._reply(completion, False, None)).spans
        return [(max(start - lead, 0) if end > lead else start - lead, end - lead) for start, end in found]

    def ids_within(self, text: str) -> list[int]:
        """The ids of a text as it stands in the midst of another."""
        return self._apart(self._encoder.escape(text)).ids

    def ids_after(self, anchor: str, text: str) -> list[int] | None:
        """The ids of a text as it follows `anchor`; None where one token spans the two."""
        found = self._encoder.after(anchor, self._encoder.escape(text))
        return None if found is None else found.ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a completion: what follows the prompt, without stop token or what the template puts around it."""
        lead, ending = self._shown
        return self._seen(ids).removeprefix(lead).removesuffix(ending if ids and ids[-1] == self.stop_token_id else "")

    def decode_begun(self, ids: Sequence[int]) -> str:
        """As much of `decode`'s text as stays while more tokens follow: no part of a character whose other bytes are
        still to come, nor of what the template puts around the text."""
        lead, ending = self._shown
        seen = self._seen(ids).rstrip(UNDECODED)
        if lead.startswith(seen):
            return ""
        text = seen.removeprefix(lead)
        held = max(length for length in range(len(ending) + 1) if text.endswith(ending[:length]))
        return text[: len(text) - held]

    def token_text(self, token_id: int) -> str:
        """One token's own text, the space before a word included, which tokenizers drop where they decode it alone."""
        before, after = (self.tokenizer.decode(ids) for ids in (self._before, [*self._before, token_id]))
        return str(after)[len(before) :]

    # -- rendering -----------------------------------------------------------------------------------------------

    def _prompt(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> str:
        escaped, tool_texts = self._encoder.escape(list(messages)), self._encoder.escape(list(tools))
        rendered = self._render(escaped, generate=True, tools=tool_texts)
        for message in escaped:
            _require_rendered(f"the {message['role']} message", _texts(message), rendered)
        names = [tool.get("function", tool).get("name") for tool in tool_texts]
        _require_rendered("the tools", _leaves(names), rendered)
        return rendered

    def _call(self, record: Record) -> str:
        """The reply that calls tools, as the template writes it after the prompt, with its stop token."""
        reply = {"role": "assistant", "content": record.completion, "tool_calls": list(record.tool_calls)}
        reply |= {"reasoning_content": record.reasoning} if record.reasoning else {}
        escaped, tools = self._encoder.escape([*record.messages, reply]), self._encoder.escape(list(record.tools))
        prompt = self._render(escaped[:-1], generate=True, tools=tools)
        whole = self._render(escaped, generate=False, tools=tools)
        end = whole.find(self._turn.stop, len(prompt))
        if not whole.startswith(prompt) or end < 0:
            raise TemplateError("the chat template does not write a call of tools after its own prompt")
        call = whole[len(prompt) : end]
        _require_rendered("the call of tools", _texts(escaped[-1]), call)
        return call + (self._turn.stop if record.stopped else "")

    def _reply(self, completion: str, stopped: bool, thoughts: str | None) -> str:
        return f"{self._lead(thoughts)}{self._encoder.escape(completion)}{self._turn.ending if stopped else ''}"

    def _lead(self, thoughts: str | None) -> str:
        before, after = self._turn.thought_lead
        return self._turn.lead if thoughts is None else f"{before}{self._encoder.escape(thoughts)}{after}"

    def _render(self, messages: list[Message], generate: bool, tools: Any = None) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages, tools=tools or None, tokenize=False, add_generation_prompt=generate
                )
            )
        except Exception as error:  # jinja raises whatever the template's author chose to raise
            roles = [m["role"] for m in messages]
            raise TemplateError(f"the chat template refuses a conversation of {roles}: {error}") from error

    # -- encoding ------------------------------------------------------------------------------------------------

    def _following(self, text: str) -> Encoded:
        """The tokens of rendered text after a prompt's; by itself where a token would span the two."""
        return self._encoder.after(self._anchor, text) or self._apart(text)

    def _apart(self, text: str) -> Encoded:
        """The tokens of rendered text that no token before it may take in: as it reads back, whatever the tokenizer
        puts before the first word of what it encodes."""
        decode, plain = self.tokenizer.decode, self._encoder.unescape(text)
        prompt = decode(self._before)
        found = [encoded for anchor in ("", "\n", ".") if (encoded := self._encoder.after(anchor, text)) is not None]
        exact = (one for one in found if decode([*self._before, *one.ids]) == prompt + plain)
        return next(exact, found[0])

    def _seen(self, ids: Sequence[int]) -> str:
        """What is seen of tokens that follow a prompt, where special tokens are skipped."""
        decode = self.tokenizer.decode
        prompt = decode(self._before, skip_special_tokens=True)
        return str(decode([*self._before, *ids], skip_special_tokens=True)[len(prompt) :])

    @cached_property
    def _shown(self) -> tuple[str, str]:
        """What is seen of a turn's lead and ending."""
        lead, ending = (self._seen(self._following(text).ids) for text in (self._turn.lead, self._turn.ending))
        return lead, ending

    # -- what the template writes around a reply -----------------------------------------------------------------

    def _probe_turn(self, prompt: str) -> Turn:
        whole = self._render([*QUESTION, {"role": "assistant", "content": PROBE}], generate=False)
        opened = ""  # thoughts that the prompt itself begins
        stem = prompt
        if not whole.startswith(prompt):
            stem = prompt[: self._encoder.last_spelt(prompt)]
            opened = prompt[len(stem) :]
        lead, found, rest = whole[len(stem) :].partition(PROBE)
        closing = opened.strip().replace("<", "</", 1)
        if not whole.startswith(stem) or not found or (opened and closing not in self._encoder.control):
            raise self._no_round_trip(prompt, whole)
        if lead.strip() and self._encoder.spells(lead) is None:
            raise self._no_round_trip(prompt, whole)
        before, after = self._thought_lead(stem) or THOUGHT_TAGS
        if opened:
            before, after = "", f"\n{closing}\n\n"
            lead = after
        ending, stop = self._ending(rest)
        return Turn(lead, (before, after), ending, stop)

    def _thought_lead(self, stem: str) -> tuple[str, str] | None:
        """How the template writes thoughts before a reply, if it does."""
        reply = {"role": "assistant", "content": PROBE, "reasoning_content": THOUGHT}
        whole = self._render([*QUESTION, reply], generate=False)
        before, thought, rest = whole[len(stem) :].partition(THOUGHT)
        after, found, _ = rest.partition(PROBE)
        return (before, after) if whole.startswith(stem) and thought and found else None

    def _ending(self, rest: str) -> tuple[str, str]:
        """What ends a turn, up to its stop token, and that token."""
        if (stop := self._encoder.spells(rest)) is not None:
            separator = rest.partition(stop)[0]
            if not separator.strip():
                return separator + stop, stop
        elif not rest:
            if self.tokenizer.eos_token is None:
                raise TemplateError(
                    "the chat template ends a completion with nothing and the tokenizer has no eos token"
                )
            return str(self.tokenizer.eos_token), str(self.tokenizer.eos_token)
        raise TemplateError(
            f"the chat template ends a completion with {rest!r}, which starts with no special token; name another with "
            f"chat_template"
        )

    def _no_round_trip(self, prompt: str, whole: str) -> TemplateError:
        return TemplateError(
            f"the chat template does not round-trip: after the prompt {prompt!r} a conversation with the completion "
            f"{PROBE!r} renders as {whole!r}; name another with chat_template"
        )


def _texts(message: Message) -> list[str]:
    """The texts of a message that a rendering must hold."""
    calls = [call.get("function", call) for call in message.get("tool_calls") or []]
    return _leaves([message.get("content"), *([call.get("name"), call.get("arguments")] for call in calls)])


def _leaves(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [text for one in value for text in _leaves(one)] if isinstance(value, list) else []


def _require_rendered(what: str, texts: list[str], rendered: str) -> None:
    """Raises TemplateError where a text is missing from the rendering, whole or as JSON writes it."""
    for text in texts:
        wanted = text.strip()
        if wanted not in rendered and json.dumps(wanted, ensure_ascii=False)[1:-1] not in rendered:
            raise TemplateError(f"the chat template leaves out {what}")
