"""One attention over a packed micro-batch, forward and backward, in the forms that torch has for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from benchmarks.gpu.measuring import added_mib, milliseconds
from benchmarks.lengths import rows as made_rows
from proxykd.models import packed_attention
from proxykd.models.batching import CompletionBatch, collate, collate_behind

HEADS, KV_HEADS, WIDTH = 32, 8, 64
"""Of llama-3-1b."""
TOKENS = 16_384


def measure() -> Iterator[dict[str, Any]]:
    for stage in ("sft", "align"):
        batch, sides = _batch(stage)
        layout = batch.to(torch.device("cuda")).layout
        for dtype in (torch.bfloat16, torch.float32):
            tokens = len(batch.input_ids_T)
            query, key, value = (
                torch.randn(1, heads, tokens, WIDTH, device="cuda", dtype=dtype, requires_grad=True)
                for heads in (HEADS, KV_HEADS, KV_HEADS)
            )
            slope = torch.randn(1, tokens, HEADS, WIDTH, device="cuda", dtype=dtype)
            forms = _forms(layout, dtype, sides)
            for form, attend in forms.items():
                row: dict[str, Any] = {"stage": stage, "type": str(dtype)[6:], "form": form, "tokens": tokens}

                def both(attend: Callable[..., Tensor] = attend) -> None:
                    torch.autograd.grad(attend(query, key, value), (query, key, value), slope)

                try:
                    row |= {"ms": milliseconds(both), "mib": added_mib(both)}
                except Exception as error:  # a form that this torch or card has not is a row, not the end
                    row["error"] = f"{type(error).__name__}: {error}"[:200]
                yield row


def _batch(stage: str) -> tuple[CompletionBatch, list[tuple[int, int]]]:
    """As many records as fit in TOKENS; and each token's record with its side: 0 for prompt, 1 and 2 behind it."""
    rows: list[dict[str, Any]] = []
    sides: list[tuple[int, int]] = []
    for number, row in enumerate(made_rows(200, 1000)):
        completions = (row["completion_ids"], row["rejected_ids"])[: 2 if stage == "align" else 1]
        own = [(number, 0)] * len(row["prompt_ids"])
        for side, completion in enumerate(completions, start=1):
            own += [(number, side)] * (len(completion) - 1)
        if len(sides) + len(own) > TOKENS:
            break
        sides += own
        rows.append({"prompt": row["prompt_ids"], "behind": completions})
    prompts = [row["prompt"] for row in rows]
    if stage == "align":
        return collate_behind(prompts, [row["behind"] for row in rows]), sides
    return collate(prompts, [row["behind"][0] for row in rows]), sides


def _forms(layout: Any, dtype: torch.dtype, sides: list[tuple[int, int]]) -> dict[str, Callable[..., Tensor]]:
    attend = packed_attention.PACKED["packed_sdpa"][0]
    module = SimpleNamespace(num_key_value_groups=HEADS // KV_HEADS, is_causal=True)

    def flash(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attend(module, query, key, value, None, layout=layout, scaling=WIDTH**-0.5)[0]

    def groups(*tensors: Tensor) -> Tensor:
        with patch.object(packed_attention, "takes_flash", lambda *_: False):
            return flash(*tensors)

    def shared(*tensors: Tensor) -> Tensor:
        with patch.object(packed_attention, "_own_keys", sdpa_attention_forward):
            return groups(*tensors)

    found = {"groups, keys repeated": groups, "groups, keys shared": shared}
    if dtype == torch.bfloat16:
        found |= {"one behind the other": flash, "flex": _flex(sides)}
    return found


def _flex(sides: list[tuple[int, int]]) -> Callable[..., Tensor]:
    """FlexAttention. Its block mask is made once, at the first call: no part of what is measured."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    record_T, side_T = torch.tensor(sides, device="cuda").unbind(1)
    compiled = torch.compile(flex_attention)

    def seen(_b: Tensor, _h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        one = (record_T[query] == record_T[key]) & (query >= key)
        return one & ((side_T[key] == 0) | (side_T[key] == side_T[query]))

    @cache
    def mask() -> Any:
        return torch.compile(create_block_mask)(seen, None, None, len(sides), len(sides), device="cuda")

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scale = WIDTH**-0.5
        return compiled(query, key, value, block_mask=mask(), scale=scale, enable_gqa=True).transpose(1, 2)

    return attend
