"""What providers are known to do, as data: how their answers end, and whose an error is.

From the types of the openai and anthropic clients, the providers' pages on errors, vLLM's source, and what users
of each have reported. docs/collect.md tells what comes of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

STOP, LENGTH, REFUSED, WITHHELD, UNFINISHED = ENDINGS = ("stop", "length", "refused", "content_filter", "unfinished")
"""How a completion ended: by itself; at a limit; by itself, as a refusal; cut off by a filter; otherwise."""

FINISH_REASONS = {
    "stop": STOP,  # OpenAI, Azure, OpenRouter, vLLM, Ollama; Gemini in capitals
    "end_turn": STOP,  # Anthropic
    "stop_sequence": STOP,  # Anthropic
    "eos": STOP,  # Together
    "length": LENGTH,
    "max_tokens": LENGTH,  # Anthropic; Gemini in capitals
    "model_context_window_exceeded": LENGTH,  # Anthropic
    "model_length": LENGTH,  # Mistral
    "content_filter": WITHHELD,
    "refusal": WITHHELD,  # Anthropic: a classifier stepped in, wherever the text stood
    "safety": WITHHELD,  # Gemini
}
"""What each word means. Any other is UNFINISHED: `error` (OpenRouter, Mistral), `insufficient_system_resource`
(DeepSeek), `abort` and `repetition` (vLLM), `load` (Ollama), `tool_calls`, `pause_turn`, none, what is yet to come."""


class Whose(Enum):
    """Whose an error is, which says what is to be done about it."""

    ACCOUNT = "the account's"
    REQUEST = "the request's, whatever its prompt"
    PROMPT = "this prompt's alone"
    LENGTH = "the prompt's if another was answered under the same limits, else the request's"
    UNCLEAR = "the prompt's if another is answered later, else the request's or the account's"
    RATE = "a limit of requests or tokens a minute"
    TRANSIENT = "passing"


@dataclass(frozen=True)
class Rule:
    """An error with one of `statuses` whose code, type and message hold `words` is `whose`."""

    whose: Whose
    statuses: tuple[int, ...]
    words: str = ""

    def holds(self, status: int, said: str) -> bool:
        return status in self.statuses and re.search(self.words, said, re.IGNORECASE) is not None


RULES = (
    Rule(Whose.ACCOUNT, (429,), r"insufficient_quota|billing_not_active|billing_hard_limit|spend_limit"),
    Rule(Whose.RATE, (429,)),
    Rule(Whose.ACCOUNT, (401, 402, 407)),
    Rule(Whose.TRANSIENT, (408, 409, 425, 498)),
    # A filter, before anything that the prompt's own words might look like.
    Rule(
        Whose.PROMPT,
        (400, 403, 422, 451),
        r"content_filter|content management policy|content filtering policy|responsibleaipolicy|invalid_prompt"
        r"|\bflagged\b|requires moderation",
    ),
    Rule(
        Whose.ACCOUNT,
        (400, 403, 422),
        r"credit balance|insufficient[ _](?:funds|balance|credits?|quota)|billing_|spend_limit|on_hold"
        r"|organization has been disabled|account .{0,30}(?:deactivated|suspended|disabled)|invalid_api_key",
    ),
    # A completion that is too long for the model as such; one that is too long beside this prompt.
    Rule(Whose.REQUEST, (400, 422), r"at most \d+ completion tokens|maximum allowed number of output tokens"),
    Rule(
        Whose.LENGTH,
        (400, 413, 422),
        r"in the completion|exceed context limit|max_(?:completion_)?tokens\W.{0,60}(?:too large|at least 1)",
    ),
    Rule(
        Whose.PROMPT,
        (400, 413, 422),
        r"context_length_exceeded|maximum context length|prompt is too long|context window|string_above_max_length"
        r"|input is too long|request_too_large",
    ),
    Rule(Whose.PROMPT, (413,)),
    Rule(Whose.ACCOUNT, (403,)),
    Rule(Whose.REQUEST, (301, 302, 303, 307, 308, 404, 405, 410, 501)),
    Rule(
        Whose.REQUEST,
        (400, 422),
        r"unsupported_parameter|unsupported_value|unknown_parameter|unrecognized request argument|extra_forbidden"
        r"|extra inputs are not permitted|model_not_found|not supported with this model|model.{0,80}does not exist"
        r"|model.{0,80}not found",
    ),
)
"""The first that holds decides. After them: 500 and above are passing, an error that names a field is the request's,
and all else is unclear."""

FIELDS_OF_THE_PROMPT = ("messages", "prompt", "input", "content", "body")
"""Fields that hold the prompt, so that an error that names one of them may still be its own."""

SETTINGS = {
    "model": "set teacher.model to a name that the API knows",
    "max_tokens": "lower teacher.max_tokens, or set teacher.max_tokens_field=max_completion_tokens",
    "max_completion_tokens": "lower teacher.max_tokens, or set teacher.max_tokens_field=max_tokens",
    "seed": "set 'teacher.leave_out=[seed]'",
    "temperature": "set teacher.temperature to what it takes, or 'teacher.leave_out=[temperature]'",
    "top_p": "set teacher.top_p to what it takes, or to null",
    "logprobs": "set teacher.top_logprobs to what it takes; 0 asks for none",
    "top_logprobs": "set teacher.top_logprobs to what it takes; 0 asks for none",
}
"""What to change where an error names a field of the request."""
OTHER_FIELD = "set it in teacher.extra_body, or take it out there"
FIXES = {
    Whose.ACCOUNT: "mend the account or its key",
    Whose.REQUEST: "mend teacher.model, teacher.base_url or what else of teacher.* it speaks of",
}

STATUS_OF_TYPE = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
"""Of Anthropic's errors, where no status comes with them: in a batch, or in an answer that began as a good one."""


def ended(reason: object) -> str:
    """Returns how a completion ended, one of ENDINGS, by the provider's own word."""
    return FINISH_REASONS.get(reason.lower(), UNFINISHED) if isinstance(reason, str) else UNFINISHED


def whose_error(status: int | None, said: str, field: str | None) -> Whose:
    """Returns whose an error is, by its HTTP status (None: none came with it), its code, type and message, and the
    field of the request that it names."""
    status = 400 if status is None else status
    for rule in RULES:
        if rule.holds(status, said):
            return rule.whose
    if status >= 500:
        return Whose.TRANSIENT
    return Whose.REQUEST if field is not None and field not in FIELDS_OF_THE_PROMPT else Whose.UNCLEAR


def fix_for(whose: Whose, field: str | None) -> str:
    """Returns what to do before the next start."""
    if whose is Whose.REQUEST and field is not None and field not in FIELDS_OF_THE_PROMPT:
        return SETTINGS.get(field, OTHER_FIELD)
    return FIXES[whose]
