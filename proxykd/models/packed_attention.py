"""Attention over packed sequences, whatever the model's own form of it: each token sees its own sequence alone.

All of a model but attention goes token by token, so that packed sequences need no padding there, and a prompt that
several completions share is computed once. For attention itself

- on a GPU, in half precision: torch's flash kernels, for sequences of any length one behind the other
  (batching.Stretches);
- else sequences of like length are padded side by side (batching.Layout) and handed to what the model would have used:
  torch's scaled_dot_product_attention, or the model's eager form, where scores are capped. Attention has under a tenth
  of a model's work at 1,024 tokens, so its padding costs little.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from proxykd.models.batching import Layout, Places

Attention = Callable[..., tuple[Tensor, Any]]
KNOWN_LAYERS = {"full_attention", "sliding_attention"}
NO_MASK_SHAPE = (1, 1, 0, 0)
"""A mask that fits nothing: it keeps transformers from making one for the packed row, and a model that would apply it
without the layout fails."""
GROUPED: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
"""Several queries a key: torch 2.13 wants it said, 2.11 knows no such argument."""
FLASH_WIDTH = 256
"""Of a head, at most; a multiple of 8."""


def pack_attention(decoder: Any) -> bool:
    """Lets the decoder take packed batches; returns whether it can.

    One cannot whose tokens see others by something else than transformers' attention functions (states, convolutions),
    or by another mask than a causal one with or without a window.
    """
    config = decoder.config
    own = config._attn_implementation
    layers = set(getattr(config, "layer_types", None) or ())
    if own not in ("sdpa", "eager") or not decoder._supports_attention_backend or decoder._is_stateful:
        return own in PACKED
    if not layers <= KNOWN_LAYERS or not getattr(config, "is_causal", True):
        return False
    decoder.set_attn_implementation(f"packed_{own}")
    return True


def run_packed(decoder: Any, input_ids_T: Tensor, position_ids_T: Tensor, layout: Layout) -> Tensor:
    """The decoder's final hidden states of T packed tokens: [T, H]."""
    output = decoder(
        input_ids=input_ids_T[None],
        position_ids=position_ids_T[None],
        attention_mask=input_ids_T.new_empty(NO_MASK_SHAPE, dtype=torch.bool),
        layout=layout,
        use_cache=False,
    )
    hidden_TH: Tensor = output.last_hidden_state[0]
    return hidden_TH


def run_padded(decoder: Any, input_ids_T: Tensor, layout: Layout) -> Tensor:
    """The same from a decoder that takes no packed tokens: one group of like length after the other."""
    groups = layout.side_by_side(input_ids_T[layout.padded.tokens_P])
    hidden = [decoder(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1) for ids in groups]
    return torch.cat(hidden)[layout.padded.places_T]


def _sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    layout: Layout | None = None,
    **options: Any,
) -> tuple[Tensor, Any]:
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    if takes_flash(query, value):
        return _one_behind_the_other(query, key, value, layout, options), None
    attend = _own_keys if query.is_cuda else sdpa_attention_forward
    return _by_group(attend, _window_mask, module, query, key, value, layout, options)


def _own_keys(
    _: nn.Module, query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """A key for each query: GPUs have no other kernel for float32 but the one that writes all scores down."""
    keys, values = (one.repeat_interleave(query.shape[1] // one.shape[1], 1) for one in (key, value))
    found = scaled_dot_product_attention(
        query, keys, values, visible, scale=options.get("scaling"), is_causal=visible is None
    )
    return found.transpose(1, 2), None


def _eager(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    layout: Layout | None = None,
    **options: Any,
) -> tuple[Tensor, Any]:
    own: Attention = sys.modules[type(module).__module__].eager_attention_forward
    if layout is None:
        return own(module, query, key, value, attention_mask, **options)
    return _by_group(own, _added_mask, module, query, key, value, layout, options)


def takes_flash(query: Tensor, value: Tensor) -> bool:
    """Whether the device has flash kernels for [..., T, D] of this type and width."""
    width = query.shape[-1]
    return (
        query.is_cuda
        and query.dtype in (torch.bfloat16, torch.float16)
        and value.shape[-1] == width <= FLASH_WIDTH
        and width % 8 == 0
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


def _one_behind_the_other(query: Tensor, key: Tensor, value: Tensor, layout: Layout, options: dict[str, Any]) -> Tensor:
    """Queries, keys and values are [1, heads, T, D]; returns [1, T, heads, D]."""
    stretches, window = layout.stretches, options.get("sliding_window")
    queries, keys, values = (one[0].transpose(0, 1) for one in (query, key, value))
    if stretches.keys is not None:
        keys, values = (_Spread.apply(one, stretches.keys) for one in (keys, values))
    found = varlen_attn(
        queries,
        keys,
        values,
        stretches.query_ends,
        stretches.key_ends,
        *stretches.longest,
        scale=options.get("scaling"),
        window_size=(-1 if window is None else window - 1, 0),
        **GROUPED,
    )
    assert isinstance(found, Tensor)
    return found[None]


def _by_group(
    attend: Attention,
    mask: Callable[[int, int | None, Tensor], Tensor | None],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    options: dict[str, Any],
) -> tuple[Tensor, None]:
    """Queries, keys and values are [1, heads, T, D]; returns [1, T, heads, D]."""
    spread = [_Spread.apply(values[0].transpose(0, 1), layout.padded) for values in (query, key, value)]
    outputs = []
    for group in zip(*map(layout.side_by_side, spread), strict=True):
        width = group[0].shape[1]
        visible = mask(width, options.get("sliding_window"), query)
        output, _ = attend(module, *(values.transpose(1, 2) for values in group), visible, **options)
        outputs.append(output.flatten(0, 1))
    return _Gather.apply(outputs[0] if len(outputs) == 1 else torch.cat(outputs), layout.padded)[None], None


class _Spread(torch.autograd.Function):
    """Tokens to their places, [T, ...] to [P, ...]. Gradients are gathered, not scattered: no atomic additions."""

    @staticmethod
    def forward(ctx: Any, values_T: Tensor, places: Places) -> Tensor:
        ctx.places = places
        return values_T.index_select(0, places.tokens_P)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient_P: Tensor) -> tuple[Tensor, None]:
        places: Places = ctx.places
        gradient_T = gradient_P.index_select(0, places.places_T)
        if len(places.shared_A):
            gradient_T.index_add_(0, places.shared_A, gradient_P.index_select(0, places.again_A))
        return gradient_T, None


class _Gather(torch.autograd.Function):
    """Each token from its place, [P, ...] to [T, ...]."""

    @staticmethod
    def forward(ctx: Any, values_P: Tensor, places: Places) -> Tensor:
        ctx.places = places
        return values_P.index_select(0, places.places_T)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient_T: Tensor) -> tuple[Tensor, None]:
        places: Places = ctx.places
        gradient_P = gradient_T.new_zeros(len(places.tokens_P), *gradient_T.shape[1:])
        return gradient_P.index_copy_(0, places.places_T, gradient_T), None


def _window_mask(width: int, window: int | None, like: Tensor) -> Tensor | None:
    """None where the kernels' own causal mask says all."""
    return None if window is None or window >= width else _visible(width, window, like.device)


def _added_mask(width: int, window: int | None, like: Tensor) -> Tensor:
    visible = _visible(width, window or width, like.device)
    return torch.zeros_like(visible, dtype=like.dtype).masked_fill_(~visible, torch.finfo(like.dtype).min)


@lru_cache(maxsize=16)
def _visible(width: int, window: int, device: torch.device) -> Tensor:
    """Which key each query of a sequence sees: itself and what came before it, `window` tokens in all; [1, 1, W, W]."""
    places = torch.arange(width, device=device)
    behind = places[:, None] - places
    return ((behind >= 0) & (behind < window))[None, None]


PACKED: dict[str, tuple[Attention, Callable[..., Any]]] = {
    "packed_sdpa": (_sdpa, sdpa_mask),
    "packed_eager": (_eager, eager_mask),
}
for _name, (_attention, _mask) in PACKED.items():
    # Of layers that are compiled it is no part: each batch has groups of its own.
    AttentionInterface.register(_name, torch.compiler.disable(_attention))
    AttentionMaskInterface.register(_name, _mask)
