"""The teacher: what it is asked, how fast and at what price, and what of its text is taken."""

from __future__ import annotations

import json
import re
from typing import Any, Literal, Self
from urllib.parse import parse_qsl, urlsplit

from pydantic import Field, model_validator

from proxykd.config.sections import ModelConfig, Section

Flag = Literal["refusal", "truncated", "empty", "looping", "encoding", "near_duplicate", "contaminated"]

AZURE_DEPLOYMENT = "/openai/deployments/"
"""In the path of an address that only Azure's own client can ask."""
SECRET = re.compile(r"key|token|secret|password|^sig", re.IGNORECASE)
LOOKS_LIKE_A_KEY = re.compile(r"(?:sk|gsk|xai|pk|AIza)[-_]?[A-Za-z0-9_-]{16,}")
OWNED = {
    "model": "teacher.model",
    "messages": "the prompts",
    "max_tokens": "teacher.max_tokens",
    "max_completion_tokens": "teacher.max_tokens (with teacher.max_tokens_field)",
    "temperature": "teacher.temperature",
    "top_p": "teacher.top_p",
    "seed": "the seed of each request (teacher.leave_out: [seed] sends none)",
    "n": "teacher.samples",
    "stream": "the whole answers that are kept",
    "logprobs": "teacher.top_logprobs",
    "top_logprobs": "teacher.top_logprobs",
}
"""What `teacher.extra_body` may not say, and what says it."""


class TeacherConfig(Section):
    """The black box, and what it is asked ([collect.md](collect.md)). One that is asked is at `base_url` (any
    OpenAI-compatible API), at the own address of a `provider`, or a `local` model that a run serves sealed.
    """

    model: str = "unknown"
    """Its name: as the API knows it where it is asked, for the report where the text is there already."""
    provider: Literal["openai", "anthropic"] = "openai"
    """Whose API it speaks."""
    base_url: str | None = None
    """Address of the API; `default` is the provider's own."""
    api_key_env: str | None = None
    """Environment variable that holds the key. Unset, `OPENAI_API_KEY` or `ANTHROPIC_API_KEY`."""
    api_key_file: str | None = None
    """A file that holds the key and nothing else; it goes before the variable."""
    terms: str | None = Field(None, min_length=1)
    """What its provider's terms say of training on its answers, as you have checked them; the data set and the
    student's card keep it.
    """
    local: ModelConfig | None = None
    """A model that a run serves sealed: text alone, so that its true distribution is known at the end."""
    system: str | None = None
    """System message before prompts that bring none."""
    samples: int = Field(1, ge=1)
    """Completions a prompt."""
    max_tokens: int = Field(512, ge=1)
    """Most tokens of a completion, as the teacher counts them."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What an OpenAI-compatible API calls them; newer models want the second."""
    temperature: float = Field(1.0, ge=0.0)
    """Sampling temperature; Anthropic takes at most 1."""
    top_p: float | None = Field(None, gt=0.0, le=1.0)
    """Nucleus sampling: the mass of the likeliest tokens that are drawn from. Unset, all."""
    top_logprobs: int = Field(0, ge=0, le=20)
    """Likeliest tokens whose log-probs a grey box is asked for at each place."""
    extra_body: dict[str, Any] = Field({})
    """What else the API is to be told, under its own names."""
    leave_out: tuple[Literal["max_tokens", "temperature", "seed"], ...] = Field((), exclude_if=lambda value: not value)
    """Of what an OpenAI-compatible API is told by default, what it does not take. Without `max_tokens` no budget can be
    kept.
    """

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.local and self.base_url:
            raise ValueError("teacher.local and teacher.base_url are both set; set one of them")
        if self.base_url is not None and self.base_url != "default":
            check_address(self.base_url)
        self._check_key_names()
        self._check_extra_body()
        if self.provider == "anthropic" and self.leave_out:
            raise ValueError(
                f"teacher.leave_out names {', '.join(self.leave_out)}, but Anthropic's API is told what it takes; "
                f"remove it"
            )
        if self.provider == "anthropic" and self.top_logprobs:
            raise ValueError(
                f"teacher.top_logprobs is {self.top_logprobs}, but Anthropic's API gives no log-probs; set it to 0"
            )
        if self.provider == "anthropic" and self.temperature > 1.0:
            raise ValueError(
                f"teacher.temperature is {self.temperature:g}, but Anthropic's API takes at most 1; lower it"
            )
        return self

    def _check_key_names(self) -> None:
        """A key in the place of where it is to be found would get into files and messages: it is not repeated here."""
        if self.api_key_env is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.api_key_env):
            raise ValueError("teacher.api_key_env takes the name of an environment variable, not the key itself")
        if self.api_key_file is not None and LOOKS_LIKE_A_KEY.fullmatch(self.api_key_file):
            raise ValueError("teacher.api_key_file takes the path of a file that holds the key, not the key itself")

    def _check_extra_body(self) -> None:
        try:
            json.dumps(self.extra_body, allow_nan=False, ensure_ascii=False).encode()
        except (TypeError, ValueError, RecursionError):
            raise ValueError(
                "teacher.extra_body holds what JSON cannot (a date, .inf or a lone surrogate, say); write it in quotes"
            ) from None
        if owned := [name for name in self.extra_body if name in OWNED]:
            raise ValueError(f"teacher.extra_body.{owned[0]} would go before {OWNED[owned[0]]}; remove it")

    @property
    def can_be_asked(self) -> bool:
        return self.local is not None or self.base_url is not None

    @property
    def address(self) -> str | None:
        """`base_url`, or None for the provider's own."""
        return None if self.base_url == "default" else self.base_url

    @property
    def key_variable(self) -> str:
        return self.api_key_env or f"{self.provider.upper()}_API_KEY"


def check_address(url: str) -> None:
    """Raises:
    ValueError: no client could ask there, or the address holds a secret, which is not repeated.
    """
    try:
        parts = urlsplit(url)
        host, secret = parts.hostname, parts.password or parts.username
    except ValueError:
        raise ValueError("teacher.base_url is no URL; write https://host/path") from None
    named = {name for name, _ in parse_qsl(parts.query, keep_blank_values=True)}
    if secret or any(SECRET.search(name) for name in named):
        raise ValueError("teacher.base_url holds a secret, which files would keep; use teacher.api_key_file for it")
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError(f"teacher.base_url is {url!r}; write https://host/path, or `default`")
    if AZURE_DEPLOYMENT in parts.path and "api-version" not in named:
        raise ValueError(
            f"teacher.base_url is {url!r}, an Azure deployment's without its version; add ?api-version=2024-10-21, or "
            f"use https://{host}/openai/v1"
        )


class PriceConfig(Section):
    """What the provider takes, in any one currency."""

    prompt: float = Field(0.0, ge=0)
    """Price of a million tokens of prompts."""
    completion: float = Field(0.0, ge=0)
    """Price of a million tokens of completions."""
    currency: str = "USD"
    """The currency's name, which stands beside every sum."""


class BudgetConfig(Section):
    """What collecting may cost at most, over all attempts at one data set. Every request is reserved at its worst
    case before it is sent.
    """

    tokens: int | None = Field(None, ge=1)
    """Tokens of prompts and completions together. Unset, no limit."""
    cost: float | None = Field(None, gt=0)
    """Sum in the currency of `collection.prices`, which it needs. Unset, no limit."""


class BatchConfig(Section):
    """The provider's batch API: cheaper, and answered within a day. `collection.prices` are then those of batches."""

    requests: int = Field(10_000, ge=1, le=50_000)
    """Requests a batch."""
    poll_s: float = Field(30.0, gt=0)
    """Seconds between looks at a batch."""


class CollectionConfig(Section):
    """How fast the teacher is asked, and what that may cost; no answer depends on it."""

    concurrency: int = Field(64, ge=1)
    """Requests in flight at most; how many there are is learned."""
    requests_per_minute: float | None = Field(None, gt=0)
    """The provider's limit. Unset, it is learned from the provider."""
    tokens_per_minute: float | None = Field(None, gt=0)
    """The provider's limit on tokens of prompts and completions together. Unset, it is learned from the provider."""
    timeout_s: float = Field(300.0, gt=0)
    """Seconds for a whole answer."""
    max_retries: int = Field(5, ge=0)
    """Further attempts at a request that fails; a 429 does not count."""
    tokenizer: str | None = None
    """A folder with a tokenizer.json, by which tokens are counted where the API tells no usage. Unset, a token for
    every 3 bytes.
    """
    give_up_after_s: float = Field(600.0, gt=0)
    """Seconds without a single answer that end the attempt."""
    hedge_after_s: float | None = Field(None, gt=0)
    """Seconds after which an unanswered request is sent a second time; the first answer counts, and both are paid.
    Unset, never.
    """
    batch: BatchConfig | None = None
    max_failed_share: float = Field(0.0, ge=0.0, lt=1.0)
    """Share of the prompts that a data set may lack because they found no answer."""
    accept_models: tuple[str, ...] = ()
    """Names of models that may answer. Empty, the first that does."""
    prices: PriceConfig = PriceConfig()
    budget: BudgetConfig = BudgetConfig()
    licence: str | None = None
    """The data set's licence; kept in its metadata."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.budget.cost is not None and not (self.prices.prompt or self.prices.completion):
            raise ValueError("collection.budget.cost needs collection.prices.prompt and .completion a million tokens")
        if self.batch is not None and self.hedge_after_s is not None:
            raise ValueError("collection.hedge_after_s and collection.batch are both set; a batch is not asked twice")
        return self


def with_terms_in_place(raw: Any) -> Any:
    """What a config says, with the terms where they are now: those of before had them in `collection`."""
    if isinstance(raw, dict) and isinstance(raw.get("collection"), dict) and "terms" in raw["collection"]:
        collection = dict(raw["collection"])
        teacher = {"terms": collection.pop("terms")} | dict(raw.get("teacher") or {})
        return raw | {"teacher": teacher, "collection": collection}
    return raw


def check_asking(teacher: TeacherConfig, collection: CollectionConfig) -> None:
    """Raises:
    ValueError: what is asked cannot be asked so.
    """
    budget = collection.budget
    if "max_tokens" in teacher.leave_out and (budget.tokens is not None or budget.cost is not None):
        raise ValueError(
            "teacher.leave_out names max_tokens, so that nothing bounds an answer and collection.budget cannot be "
            "kept; remove one of them"
        )
    if collection.batch is not None and AZURE_DEPLOYMENT in (teacher.base_url or ""):
        raise ValueError(
            "collection.batch: an Azure deployment takes no batches; set teacher.base_url to https://HOST/openai/v1"
        )


class JudgeConfig(Section):
    """How answers are compared ([certify.md](certify.md))."""

    rubric: str | None = None
    """What the judge is to go by, in words that follow "You compare two answers to the same request." Unset, a rubric
    that puts being correct first.
    """
    repeats: float = Field(0.1, ge=0.0, le=1.0)
    """Share of the prompts whose first comparison is asked once more, to see how far the judge agrees with itself."""


class QualityConfig(Section):
    """What of the teacher's text is left out. All is flagged and counted; what is dropped is kept apart."""

    drop: tuple[Flag, ...] = ("empty", "looping", "encoding", "contaminated")
    """Flags whose records are kept apart, out of the data set."""
    benchmarks: tuple[str, ...] = ()
    """Files of benchmark questions: a prompt that shares 13 words in a row with one is `contaminated`."""
    near_duplicate: float = Field(0.9, gt=0.0, le=1.0)
    """Jaccard similarity of two prompts' word 5-grams from which on the later one is a `near_duplicate`."""
