"""The requests to the teacher, and the replies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from proxykd.config import TeacherConfig
from proxykd.text.corpus import Record
from proxykd.text.layouts import Message
from proxykd.text.seeds import sample_seed


@dataclass(frozen=True)
class Request:
    """One request: sample `sample` of a prompt. `key` is a hash of everything that its answer depends on."""

    key: str
    id: str
    prompt_id: str
    sample: int
    messages: tuple[Message, ...]
    seed: int
    max_tokens: int | None = None
    """Of its answer, where it may have fewer than `teacher.max_tokens`."""


@dataclass(frozen=True)
class Reply:
    """What the provider answered. `finish_reason` is one of habits.py, `provider_reason` the provider's word for it.
    Counts of tokens are None where it tells none, until they are estimated (then `estimated` says so).

    `top_logprobs` is there only where the teacher gives it: for each token its text, its log-prob and the pairs of
    text and log-prob that the provider names as most likely there, in nats.
    """

    text: str
    finish_reason: str
    model: str
    request_id: str
    prompt_tokens: int | None
    completion_tokens: int | None
    top_logprobs: list[dict[str, Any]] | None = None
    provider_reason: str = ""
    estimated: bool = False


def requests_for(prompts: Iterable[Record], teacher: TeacherConfig, seed: int) -> list[Request]:
    """`teacher.samples` requests a prompt, in the order of the prompts."""
    parameters = request_identity(teacher)
    requests = []
    for prompt in prompts:
        messages = with_system(prompt.messages, teacher.system)
        for sample in range(teacher.samples):
            drawn = sample_seed(seed, sample, prompt.id)
            identity = [parameters, list(messages), sample, drawn]
            text = json.dumps(identity, sort_keys=True, ensure_ascii=False)
            key = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:32]
            record_id = prompt.id if teacher.samples == 1 else f"{prompt.id}-{sample}"
            requests.append(Request(key, record_id, prompt.id, sample, messages, drawn))
    return requests


def request_identity(teacher: TeacherConfig) -> dict[str, Any]:
    """What of the configuration an answer depends on. A key is no part of it, nor is a local teacher's address."""
    shared = teacher.model_dump(mode="json", include=set(SENT))
    shaped = teacher.model_dump(mode="json", include=set(SHAPING), exclude_defaults=True)
    where = "local" if teacher.local else teacher.base_url
    return {**shared, **shaped, "provider": teacher.provider, "endpoint": where}


SENT = ("model", "max_tokens", "temperature", "top_p", "top_logprobs", "extra_body")
SHAPING = ("max_tokens_field", "leave_out")
"""Which fields say it. Named where they depart from the defaults, so that keys of data sets without them stay."""


def with_system(messages: tuple[Message, ...], system: str | None) -> tuple[Message, ...]:
    """The conversation with `system` before it, unless it brings a system message of its own."""
    if system is None or messages[0]["role"] == "system":
        return messages
    return ({"role": "system", "content": system}, *messages)
