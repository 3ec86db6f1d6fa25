"""The teacher: what it is asked, how fast and at what price, and what of its text is taken."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from proxykd.config.sections import ModelConfig, Section

Flag = Literal["refusal", "truncated", "empty", "looping", "encoding", "near_duplicate", "contaminated"]


class TeacherConfig(Section):
    """The black box, and what it is asked. One that is asked is at `base_url` (any OpenAI-compatible API), at the own
    address of a `provider`, or a `local` model that a run serves sealed.
    """

    model: str = "unknown"
    provider: Literal["openai", "anthropic"] = "openai"
    base_url: str | None = Field(None, description="of the API; `default` is the provider's own")
    api_key_env: str | None = Field(None, description="default: OPENAI_API_KEY or ANTHROPIC_API_KEY")
    api_key_file: str | None = Field(None, description="a file that holds the key and nothing else")
    local: ModelConfig | None = None
    system: str | None = Field(None, description="before prompts that bring no system message")
    samples: int = Field(1, ge=1, description="completions a prompt")
    max_tokens: int = Field(512, ge=1)
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    temperature: float = Field(1.0, ge=0.0)
    top_p: float | None = Field(None, gt=0.0, le=1.0)
    top_logprobs: int = Field(0, ge=0, le=20, description="of a grey box: how many most likely tokens it names a place")
    extra_body: dict[str, Any] = Field({}, description="what else the API is to be told, as it names it")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.local and self.base_url:
            raise ValueError("teacher.local and teacher.base_url are both set; set one of them")
        if self.provider == "anthropic" and self.top_logprobs:
            raise ValueError("teacher.top_logprobs: Anthropic's API gives no log-probs; set it to 0")
        if self.provider == "anthropic" and self.temperature > 1.0:
            raise ValueError(f"teacher.temperature {self.temperature:g}: Anthropic's API takes at most 1")
        return self

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


class PriceConfig(Section):
    """What the provider takes for a million tokens, in any one currency."""

    prompt: float = Field(0.0, ge=0)
    completion: float = Field(0.0, ge=0)
    currency: str = "USD"


class BudgetConfig(Section):
    """What collecting may cost at most, over all attempts at one data set. None: no limit."""

    tokens: int | None = Field(None, ge=1)
    cost: float | None = Field(None, gt=0)


class BatchConfig(Section):
    """The provider's batch API: cheaper, and answered within a day. Prices are then those of batches."""

    requests: int = Field(10_000, ge=1, le=50_000, description="a batch")
    poll_s: float = Field(30.0, gt=0)


class CollectionConfig(Section):
    """How fast the teacher is asked, what that may cost, and under which terms; no answer depends on it."""

    concurrency: int = Field(64, ge=1, description="requests in flight at most; how many there are is learned")
    requests_per_minute: float | None = Field(None, gt=0, description="default: learned from the provider")
    tokens_per_minute: float | None = Field(None, gt=0, description="default: learned from the provider")
    timeout_s: float = Field(300.0, gt=0, description="for a whole answer")
    max_retries: int = Field(5, ge=0, description="of a request that fails; a 429 does not count")
    give_up_after_s: float = Field(600.0, gt=0, description="without a single answer")
    hedge_after_s: float | None = Field(None, gt=0, description="asks a second time; the first answer counts")
    batch: BatchConfig | None = None
    max_failed_share: float = Field(0.0, ge=0.0, lt=1.0, description="unanswered prompts that a data set may lack")
    accept_models: tuple[str, ...] = Field((), description="that may answer; default: the first that does")
    prices: PriceConfig = PriceConfig()
    budget: BudgetConfig = BudgetConfig()
    licence: str | None = Field(None, description="of the data set; kept in its metadata")
    terms: str | None = Field(None, description="of the provider, that you have checked; kept in the metadata")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.budget.cost is not None and not (self.prices.prompt or self.prices.completion):
            raise ValueError("collection.budget.cost needs collection.prices.prompt and .completion a million tokens")
        if self.batch is not None and self.hedge_after_s is not None:
            raise ValueError("collection.hedge_after_s and collection.batch are both set; a batch is not asked twice")
        return self


class QualityConfig(Section):
    """What of the teacher's text is left out. All is flagged and counted; what is dropped is kept apart."""

    drop: tuple[Flag, ...] = ("empty", "looping", "encoding", "contaminated")
    benchmarks: tuple[str, ...] = Field((), description="files of benchmark questions that no prompt may contain")
    ngram: int = Field(13, ge=3, description="words in a row that a prompt may not share with a benchmark question")
    near_duplicate: float = Field(0.9, gt=0.0, le=1.0, description="Jaccard similarity of two prompts' word 5-grams")
