"""From conversations to token ids, by the model's own chat template, once."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from proxykd.corpus import Message, Record
from proxykd.errors import ModelError, TemplateError
from proxykd.storage import fetch, location

SHIPPED = Path(__file__).parent / "chat_templates"
QUESTION: tuple[Message, ...] = ({"role": "user", "content": "Is it seven?"},)
PROBE = "Yes, seven."
NO_THINKING = "{%- set enable_thinking = false -%}"
"""Before a template that opens its replies with a block of thoughts (Qwen3): the teacher's text has none."""
SYSTEM_IN_USER = (
    "{%- if messages[0]['role'] == 'system' -%}"
    "{%- set messages = [{'role': 'user', 'content': messages[0]['content'] + '\\n\\n' + messages[1]['content']}]"
    " + messages[2:] -%}"
    "{%- endif -%}"
)
"""Before a template that refuses a system message (Gemma 2): its text opens the first user message."""


@dataclass(frozen=True)
class TokenisedRecord:
    """x and y as token ids. y ends with the stop token unless the teacher's reply ended by length."""

    id: str
    slice: str
    prompt_ids: list[int]
    completion_ids: list[int]


def load_tokenizer(directory: str | Path, chat_template: str | None = None) -> Any:
    """The tokenizer of a model directory, with the config's chat template where it names one.

    The template is fitted to what a teacher's text needs (NO_THINKING, SYSTEM_IN_USER), and with the tokenizer it goes
    wherever a model of the run goes: the engine, the student.

    Raises:
        TemplateError: no template at all, or the one named is neither shipped nor a file.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(fetch(location(directory)))
    if chat_template is not None:
        tokenizer.chat_template = template_text(chat_template)
    if not tokenizer.chat_template:
        shipped = ", ".join(sorted(p.stem for p in SHIPPED.glob("*.jinja")))
        raise TemplateError(
            f"the tokenizer of {directory} has no chat template; name one with proxy.chat_template "
            f"and student.chat_template (shipped: {shipped}; or a file)"
        )
    tokenizer.chat_template = fitted_template(tokenizer)
    return tokenizer


def fitted_template(tokenizer: Any) -> str:
    """The tokenizer's default template, with what it lacks put before it; as it is where that does not help."""
    template: str = tokenizer.get_chat_template()
    if not _closes_its_prompt(tokenizer, template) and _closes_its_prompt(tokenizer, NO_THINKING + template):
        template = NO_THINKING + template
    system: tuple[Message, ...] = ({"role": "system", "content": "Be brief."}, *QUESTION)
    if _rendered(tokenizer, template, system) is None and _rendered(tokenizer, SYSTEM_IN_USER + template, system):
        template = SYSTEM_IN_USER + template
    return template


def _closes_its_prompt(tokenizer: Any, template: str) -> bool:
    """Whether a reply follows the rendered prompt at once."""
    prompt = _rendered(tokenizer, template, QUESTION, add_generation_prompt=True)
    whole = _rendered(tokenizer, template, (*QUESTION, {"role": "assistant", "content": PROBE}))
    if prompt is None or whole is None:
        return False
    return whole.startswith(prompt) and whole[len(prompt) :].lstrip().startswith(PROBE)


def _rendered(tokenizer: Any, template: str, messages: tuple[Message, ...], **options: bool) -> str | None:
    """None where the template refuses the messages, in whatever way its author chose."""
    from jinja2 import TemplateError as Refusal

    try:
        return str(tokenizer.apply_chat_template(list(messages), chat_template=template, tokenize=False, **options))
    except Refusal:
        return None


def template_text(name: str) -> str:
    shipped = SHIPPED / f"{name}.jinja"
    path = shipped if shipped.exists() else Path(name)
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in SHIPPED.glob("*.jinja")))
        raise TemplateError(f"chat_template {name!r} is neither shipped ({names}) nor a file")
    return path.read_text()


def tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 over the vocabulary, the merges (through a probe) and the chat template; 16 hex digits."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
    probe = json.dumps(
        tokenizer.encode("Tokenizers that differ: naïve, 12345, def f(x):\n\treturn x", add_special_tokens=False)
    )
    return hashlib.sha256(f"{vocabulary}{probe}{tokenizer.chat_template}".encode()).hexdigest()[:16]


def require_same_tokenizer(proxy: Any, other: Any, name: str) -> None:
    """Soft labels are distributions over token ids: every model of a run must mean the same by each.

    Raises:
        ModelError: the vocabularies differ, with the first difference.
    """
    ours, theirs = proxy.get_vocab(), other.get_vocab()
    if ours == theirs:
        return
    difference = sorted(set(ours.items()) ^ set(theirs.items()), key=lambda item: item[1])[0]
    raise ModelError(
        f"proxy and {name.replace('_', '-')} have different tokenizers ({len(ours)} and {len(theirs)} tokens; first "
        f"difference {difference[0]!r} at id {difference[1]}); choose one of the proxy's family"
    )


class ChatFormat:
    """Renders prompts and completions, and knows the token that ends a turn.

    Raises (at construction):
        TemplateError: the template does not round-trip: rendering a conversation with its completion must give
            the rendered prompt, then the completion, then a single stop token.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.stop_token_id = self._probe_stop_token()

    def prompt_ids(self, messages: tuple[Message, ...]) -> list[int]:
        return self._encode(self._render(messages, generate=True))

    def completion_ids(self, completion: str, stopped: bool = True) -> list[int]:
        return self._encode(completion) + ([self.stop_token_id] if stopped else [])

    def decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _render(self, messages: tuple[Message, ...], generate: bool) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=generate)
            )
        except Exception as error:  # jinja raises whatever the template's author chose to raise
            roles = [m["role"] for m in messages]
            raise TemplateError(f"the chat template refuses a conversation of {roles}: {error}") from error

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _probe_stop_token(self) -> int:
        prompt = self._render(QUESTION, generate=True)
        whole = self._render((*QUESTION, {"role": "assistant", "content": PROBE}), generate=False)
        tail = whole[len(prompt) :] if whole.startswith(prompt) else None
        if tail is None or not tail.lstrip().startswith(PROBE):
            raise TemplateError(
                f"the chat template does not round-trip: after the prompt {prompt!r} a conversation with the "
                f"completion {PROBE!r} renders as {whole!r}; name another with chat_template"
            )
        ending = self._encode(tail.lstrip()[len(PROBE) :])
        if not ending:
            if self.tokenizer.eos_token_id is None:
                raise TemplateError(
                    "the chat template ends a completion with nothing and the tokenizer has no eos token"
                )
            return int(self.tokenizer.eos_token_id)
        for token_id in ending:
            text = self.tokenizer.decode([token_id], skip_special_tokens=True)
            if not text:
                return int(token_id)
            if text.strip():
                break
        raise TemplateError(
            f"the chat template ends a completion with {self.tokenizer.decode(ending)!r}, which starts with no special "
            f"token; name another with chat_template"
        )


def tokenise(
    record: Record, slice_name: str, chat: ChatFormat, max_length: int, overlong: Literal["drop", "truncate"]
) -> tuple[TokenisedRecord | None, str | None]:
    """One record as token ids within `max_length`, and what was done to it: None, "truncated" or a drop reason."""
    prompt_ids = chat.prompt_ids(record.messages)
    completion_ids = chat.completion_ids(record.completion, record.stopped)
    room = max_length - len(prompt_ids)
    if room < 2:
        return None, "prompt_too_long"
    fits = len(completion_ids) <= room
    if not fits and overlong == "drop":
        return None, "completion_too_long"
    return TokenisedRecord(record.id, slice_name, prompt_ids, completion_ids[:room]), None if fits else "truncated"


def tokenise_all(
    records: list[Record], slices: list[str], chat: ChatFormat, max_length: int, overlong: Literal["drop", "truncate"]
) -> tuple[list[TokenisedRecord], Counter[str]]:
    """Every record that fits, in order, and the counts of what was truncated or dropped and why."""
    kept, notes = [], Counter[str]()
    for record, slice_name in zip(records, slices, strict=True):
        tokenised, note = tokenise(record, slice_name, chat, max_length, overlong)
        if tokenised is not None:
            kept.append(tokenised)
        if note is not None:
            notes[note] += 1
    return kept, notes


def ids_hash(ids: list[int]) -> str:
    """SHA-256 of a completion's token ids (as 32-bit little endian), 16 hex digits: what soft labels belong to."""
    return hashlib.sha256(b"".join(i.to_bytes(4, "little") for i in ids)).hexdigest()[:16]
