"""The shape of a decoder-only transformer, known without loading it: from its config.json, or by its public name."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from proxykd.config import ModelConfig
from proxykd.errors import ModelError


@dataclass(frozen=True)
class Architecture:
    """Sizes of a Llama-like decoder: gated MLP, grouped queries, RMS norms; biases and query norms are left out."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool = False

    @property
    def query_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def layer_linear(self) -> int:
        """Weights of one layer's seven matrices."""
        attention = 2 * self.hidden * self.query_width + 2 * self.hidden * self.kv_width
        return attention + 3 * self.hidden * self.intermediate

    @property
    def head(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def embeddings(self) -> int:
        """How many parameters the embeddings have, with those of a head of its own where the two are not tied."""
        return self.head * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        norms = (2 * self.layers + 1) * self.hidden
        return self.layers * self.layer_linear + norms + self.embeddings

    def lora_parameters(self, rank: int) -> int:
        """How many parameters adapters on all seven matrices of every layer have: rank * (inputs + outputs) each."""
        ends = 2 * (self.hidden + self.query_width) + 2 * (self.hidden + self.kv_width)
        return self.layers * rank * (ends + 3 * (self.hidden + self.intermediate))


PUBLISHED = {
    "smollm2-135m": Architecture(30, 576, 1536, 9, 3, 64, 49_152, True),
    "llama-2-7b": Architecture(32, 4096, 11_008, 32, 32, 128, 32_000),
    "llama-2-13b": Architecture(40, 5120, 13_824, 40, 40, 128, 32_000),
    "llama-2-70b": Architecture(80, 8192, 28_672, 64, 8, 128, 32_000),
    "llama-3-8b": Architecture(32, 4096, 14_336, 32, 8, 128, 128_256),
    "llama-3-70b": Architecture(80, 8192, 28_672, 64, 8, 128, 128_256),
    "llama-3-1b": Architecture(16, 2048, 8192, 32, 8, 64, 128_256, True),
    "llama-3-3b": Architecture(28, 3072, 8192, 24, 8, 128, 128_256, True),
    "mistral-7b": Architecture(32, 4096, 14_336, 32, 8, 128, 32_768),
    "qwen2.5-0.5b": Architecture(24, 896, 4864, 14, 2, 64, 151_936, True),
    "qwen2.5-1.5b": Architecture(28, 1536, 8960, 12, 2, 128, 151_936, True),
    "qwen2.5-7b": Architecture(28, 3584, 18_944, 28, 4, 128, 152_064),
    "qwen2.5-14b": Architecture(48, 5120, 13_824, 40, 8, 128, 152_064),
    "qwen2.5-32b": Architecture(64, 5120, 27_648, 40, 8, 128, 152_064),
    "qwen2.5-72b": Architecture(80, 8192, 29_568, 64, 8, 128, 152_064),
    "qwen3-0.6b": Architecture(28, 1024, 3072, 16, 8, 128, 151_936, True),
    "qwen3-8b": Architecture(36, 4096, 12_288, 32, 8, 128, 151_936),
    "qwen3-32b": Architecture(64, 5120, 25_600, 64, 8, 128, 151_936),
}
"""As the models' own config.json files have them (Llama 3, 3.1, 3.2 and 3.3 share shapes by size)."""


def architecture(model: ModelConfig) -> Architecture | None:
    """What `model` is made of, its dropped layers taken out; None where neither a file nor the name says it."""
    found = _from_folder(Path(model.source)) or _from_name(model.source)
    return found and replace(found, layers=found.layers - len(model.drop_layers))


def require_architecture(model: ModelConfig) -> Architecture:
    """What `model` is made of, its dropped layers taken out.

    Raises:
        ModelError: neither a file nor the name says it.
    """
    found = architecture(model)
    if found is None:
        raise ModelError(
            f"the size of {model.source!r} is unknown: set source to a folder with its config.json "
            f"(known by name: {', '.join(PUBLISHED)})"
        )
    return found


def own_dtype(model: ModelConfig) -> str | None:
    """What the source's weights are stored in; None where nothing here says it."""
    file = Path(model.source) / "config.json"
    if not file.exists():
        return None
    raw: dict[str, Any] = json.loads(file.read_text())
    dtype: str | None = raw.get("dtype") or raw.get("torch_dtype")
    return dtype


def _from_folder(folder: Path) -> Architecture | None:
    file = folder / "config.json"
    if not file.exists():
        return None
    raw: dict[str, Any] = json.loads(file.read_text())
    raw = raw.get("text_config", raw)
    heads = raw["num_attention_heads"]
    return Architecture(
        layers=raw["num_hidden_layers"],
        hidden=raw["hidden_size"],
        intermediate=raw["intermediate_size"],
        heads=heads,
        kv_heads=raw.get("num_key_value_heads") or heads,
        head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
        vocabulary=raw["vocab_size"],
        tied=raw.get("tie_word_embeddings", True),
    )


def _from_name(source: str) -> Architecture | None:
    """`meta-llama/Llama-3.1-8B-Instruct` is a llama-3-8b."""
    name = source.lower().removeprefix("package:llm-")
    name = "smollm2-135m" if name == "smollm2" else re.sub(r"llama-3\.\d-", "llama-3-", name.rpartition("/")[2])
    return next(
        (shape for known, shape in PUBLISHED.items() if re.match(rf"{re.escape(known)}(?![a-z0-9.])", name)), None
    )
