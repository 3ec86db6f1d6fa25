"""A small Llama with random weights, the same on every device and in every type; and how far results are apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.lengths import rows as made_rows
from proxykd.config import LoraConfig
from proxykd.models.loading import attach_lora
from proxykd.models.scorer import CompletionScorer

CARD = torch.device("cuda")
CPU = torch.device("cpu")
VOCABULARY, HIDDEN = 8192, 512
LENGTHS_SCALE = 0.25
"""Records of at most 256 tokens."""


def llama(dtype: torch.dtype, device: torch.device, lora: bool = True, layers: int = 4) -> CompletionScorer:
    """Its weights, LoRA's apart, are numbers that bfloat16 has, whatever `dtype`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=3 * HIDDEN, num_hidden_layers=layers,
        num_attention_heads=8, num_key_value_heads=2, head_dim=64, tie_word_embeddings=False, initializer_range=0.05,
        max_position_embeddings=2048,
    )  # fmt: skip
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(settings).to(torch.bfloat16).to(dtype)
    if lora:
        model = attach_lora(model, LoraConfig(rank=16), seed=0)
        draw = torch.Generator().manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02, generator=draw)
    return CompletionScorer(model.eval(), VOCABULARY).to(device)


def rows(records: int) -> list[dict[str, Any]]:
    found = made_rows(records, VOCABULARY, scale=LENGTHS_SCALE)
    return [{**row, "reference_chosen": -300.0, "reference_rejected": -300.0} for row in found]


def gradient(scorer: torch.nn.Module) -> Tensor:
    """All gradients in one, on the CPU, in float64."""
    found = [p.grad for p in scorer.parameters() if p.grad is not None]
    return torch.cat([one.detach().double().flatten().cpu() for one in found])


def apart(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected|, by norms."""
    found, expected = (one.detach().double().cpu() for one in (found, expected))
    return float((found - expected).norm() / expected.norm())
