"""What the REST routes take: OpenAI's fields with their meaning elsewhere, and the proxy's own. Unknown ones are named.

Every number has a bound, so that no request can ask for more than the engine gives.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

TOP_K = 20
"""vLLM's max_logprobs."""
CHOICES = 16
IDS_AT_A_TOKEN = 128
"""vLLM's MAX_LOGPROB_TOKEN_IDS."""
INT64 = 2**63

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Text = Annotated[str, Field(max_length=200_000)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, max_length=200_000)]
StopText = Annotated[str, Field(min_length=1, max_length=200)]
AdapterName = Annotated[str, Field(min_length=1, max_length=200)]
Penalty = Annotated[float, Field(ge=-2.0, le=2.0, allow_inf_nan=False)]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(Body):
    include_usage: bool | None = None


class TextPart(Body):
    type: Literal["text"]
    text: Text


class Message(Body):
    role: Literal["system", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1, max_length=100)]
    name: Annotated[str, Field(max_length=200)] | None = None

    def plain(self) -> dict[str, str]:
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": self.role, "content": content}


Messages = Annotated[list[Message], Field(min_length=1, max_length=500)]


class SamplingBody(Body):
    """What completions and chat have in common. `top_k`, `min_p` and the like are vLLM's additions."""

    model: AdapterName | None = Field(None, description="An adapter's name or alias; default: the one served.")
    n: int = Field(1, ge=1, le=CHOICES)
    temperature: float | None = Field(None, ge=0.0, le=2.0, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0.0, le=1.0, allow_inf_nan=False)
    top_k: int | None = Field(None, ge=-1, le=2**31 - 1)
    min_p: float | None = Field(None, ge=0.0, le=1.0, allow_inf_nan=False)
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    repetition_penalty: float | None = Field(None, gt=0.0, le=10.0, allow_inf_nan=False)
    logit_bias: (
        Annotated[dict[str, Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]], Field(max_length=300)]
        | None
    ) = None
    seed: int | None = Field(None, ge=-INT64, lt=INT64)
    stop: StopText | Annotated[list[StopText], Field(max_length=16)] | None = None
    min_tokens: int | None = Field(None, ge=0, le=2**20)
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Annotated[str, Field(max_length=500)] | None = None

    def engine_body(self) -> dict[str, Any]:
        """The fields that the client set, less those that name who asks and whom."""
        return self.model_dump(exclude_none=True, exclude={"model", "user"})


class CompletionBody(SamplingBody):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "aligned", "prompt": "The capital of France is", "max_tokens": 8}]}
    )
    prompt: (
        Text
        | TokenIds
        | Annotated[list[Text], Field(min_length=1, max_length=64)]
        | Annotated[list[TokenIds], Field(min_length=1, max_length=64)]
    )
    max_tokens: int | None = Field(16, ge=0, le=2**20)
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=TOP_K)
    prompt_logprobs: int | None = Field(None, ge=0, le=TOP_K)
    add_special_tokens: bool | None = None

    @model_validator(mode="after")
    def _zero_tokens_only_to_echo(self) -> CompletionBody:
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens 0 asks for nothing; set echo to have the prompt's log-probs")
        return self


class ResponseFormat(Body):
    type: Literal["text"]


class ChatBody(SamplingBody):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "aligned", "messages": [{"role": "user", "content": "Name a colour."}], "max_tokens": 8}
            ]
        }
    )
    messages: Messages
    max_tokens: int | None = Field(None, ge=1, le=2**20)
    max_completion_tokens: int | None = Field(None, ge=1, le=2**20)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=TOP_K)
    response_format: ResponseFormat | None = None

    @model_validator(mode="after")
    def _top_logprobs_need_logprobs(self) -> ChatBody:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        return self

    def engine_body(self) -> dict[str, Any]:
        return {**super().engine_body(), "messages": [message.plain() for message in self.messages]}


class DistributionBody(Body):
    """One question to the proxy's distribution: at each completion token, or at the next one where there is none."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "adapters": ["base", "aligned"],
                    "messages": [{"role": "user", "content": "Name a colour."}],
                    "completion": "Blue.",
                    "top_k": 5,
                }
            ]
        }
    )
    adapter: AdapterName | None = Field(None, description="A name or alias; default: the adapter that is served.")
    adapters: Annotated[list[AdapterName], Field(min_length=1, max_length=32)] | None = Field(
        None, description="Several, to compare side by side on the same tokens."
    )
    messages: Messages | None = Field(None, description="A conversation, rendered by the proxy's chat template.")
    prompt: Text | TokenIds | None = Field(None, description="Or raw text, or token ids.")
    completion: Text | TokenIds | None = Field(
        None, description="Text after `messages` gets the stop token, as in training; token ids are taken as they are."
    )
    top_k: int = Field(10, ge=1, le=TOP_K)
    token_ids: list[Annotated[list[TokenId], Field(max_length=IDS_AT_A_TOKEN)]] | None = Field(
        None, description="Ids whose log-probs are asked for: a list for each completion token, or one for the next."
    )

    @model_validator(mode="after")
    def _one_of_each(self) -> DistributionBody:
        if (self.messages is None) == (self.prompt is None):
            raise ValueError("give either messages or prompt")
        if self.adapter is not None and self.adapters is not None:
            raise ValueError("give either adapter or adapters")
        if self.prompt == "":
            raise ValueError("the prompt is empty")
        return self
