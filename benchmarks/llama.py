"""Llama shapes with random weights, and what a step on rows of ids takes at least, for benchmarks that need no text."""

from __future__ import annotations

from typing import Any

from proxykd.config import LoraConfig
from proxykd.models.architecture import Architecture
from proxykd.models.loading import DTYPES, attach_lora

RANK, TOP_K = 16, 10


def random_llama(arch: Architecture, dtype: str, device: str = "cpu", lora: bool = True) -> Any:
    """A model of this shape, always the same weights, with an adapter of rank 16 where it is asked for."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    settings = LlamaConfig(
        vocab_size=arch.vocabulary, hidden_size=arch.hidden, intermediate_size=arch.intermediate,
        num_hidden_layers=arch.layers, num_attention_heads=arch.heads, num_key_value_heads=arch.kv_heads,
        head_dim=arch.head_dim, tie_word_embeddings=arch.tied, max_position_embeddings=2048,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device):
        model: Any = AutoModelForCausalLM.from_config(settings, dtype=DTYPES[dtype])
    return (attach_lora(model, LoraConfig(rank=RANK), seed=0) if lora else model).eval()


def as_trained(rows: list[dict[str, Any]], stage: str, padded: bool = False) -> list[dict[str, Any]]:
    """The rows of benchmarks/lengths.py with what the losses of `stage` read. `length` is what they are cut by: behind
    one prompt, or where they are padded each side as long as the longer."""
    for row in rows:
        completions = [len(row[key]) for key in sides_of(stage)]
        row["length"] = len(row["prompt_ids"]) + sum(completions)
        if padded:
            row["length"] = len(completions) * (len(row["prompt_ids"]) + max(completions))
        row |= {"reference_chosen": -100.0, "reference_rejected": -100.0, "trust": 0.5}
        if stage == "distil":
            row["soft_labels"] = soft_labels(row)
            row |= in_own_tokens(row)
    return rows


def in_own_tokens(row: dict[str, Any]) -> dict[str, Any]:
    """What a row of a student with a tokenizer of its own has beside: of ten tokens eight are one to one with the
    proxy's and two a span, as where a family cuts otherwise; every label has its image."""
    import numpy as np

    tokens = len(row["completion_ids"])
    at = np.arange(tokens)
    spans = at[9::10] - 1
    return {
        "proxy_ids": row["completion_ids"],
        "proxy_at": np.where(np.isin(at, [spans, spans + 1]), -1, at),
        "chunks": np.stack([spans, np.full_like(spans, 2)] * 2, 1).reshape(-1),
        "images": row["soft_labels"].top_ids_TK.astype("<i4").tobytes(),
    }


def soft_labels(row: dict[str, Any]) -> Any:
    """A record's labels of TOP_K ids, all alike, that hold nine tenths."""
    import numpy as np

    from proxykd.data.soft_labels import SoftLabels

    tokens = len(row["completion_ids"])
    ids = (np.array(row["completion_ids"])[:, None] + np.arange(TOP_K)) % 30_000
    logps = np.full((tokens, TOP_K), np.log(0.9 / TOP_K))
    return SoftLabels(str(row["index"]), "", ids, logps, np.full(tokens, np.log(0.1)), logps[:, 0], 0.0)


def sides_of(stage: str) -> tuple[str, ...]:
    return ("completion_ids", "rejected_ids") if stage == "align" else ("completion_ids",)


def text_tokens(rows: list[dict[str, Any]], stage: str) -> int:
    """Tokens of all sequences, a pair's prompt twice, whatever is computed."""
    return sum(len(row["prompt_ids"]) + len(row[key]) for row in rows for key in sides_of(stage))


def floor_flops(arch: Architecture, rows: list[dict[str, Any]], stage: str, lora: bool = True) -> float:
    """Operations of a step's products: 4 a weight of the layers and token, 6 where all weights are trained; the same of
    the head and completion tokens. Each prompt once, attention left out."""
    completion = sum(len(row[key]) for row in rows for key in sides_of(stage))
    tokens = completion + sum(len(row["prompt_ids"]) for row in rows)
    return (4 if lora else 6) * (arch.layers * arch.layer_linear * tokens + arch.head * completion)
