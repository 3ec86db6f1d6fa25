"""Reads vLLM's flat prompt log-probs: a position holds the token that stands there first, then the likeliest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from proxykd.data.label_shards import CompletionLogps
from proxykd.errors import ModelError

SMALLEST_TAIL = 1e-9
"""Tail mass where the engine's float32 top-K sums to 1: its complement cannot be had from there."""


def completion_logps(flat: Any, row: Sequence[int], start: int, top_k: int, adapter: str) -> CompletionLogps:
    """Of the tokens from `start` on, with the `top_k` likeliest of those that the engine told.

    Raises:
        ModelError: they are not of the tokens of `row`.
    """
    begins = np.asarray(flat.start_indices[start:], dtype=np.int64)
    token_ids, logprobs = np.asarray(flat.token_ids, dtype=np.int64), np.asarray(flat.logprobs, dtype=np.float64)
    at_TK = begins[:, None] + 1 + np.arange(top_k)[None, :]
    actual = token_ids[begins]
    if not np.array_equal(actual, np.asarray(row[start:])):
        raise ModelError(
            "the engine's prompt log-probs are not of the tokens that were sent: another vLLM than the lock's?"
        )
    top_logps = logprobs[at_TK]
    tail = np.maximum(-np.expm1(np.logaddexp.reduce(top_logps, axis=1)), SMALLEST_TAIL)
    ranks = np.asarray(flat.ranks, dtype=np.int64)[begins]
    return CompletionLogps(logprobs[begins], token_ids[at_TK], top_logps, np.log(tail), adapter, ranks)


def told_logps(flat: Any, start: int) -> list[dict[int, float]]:
    """By position from `start` on: every id that the engine told, with its log-prob."""
    ends = flat.end_indices[start:]
    return [
        dict(zip(flat.token_ids[begin:end], flat.logprobs[begin:end], strict=True))
        for begin, end in zip(flat.start_indices[start:], ends, strict=True)
    ]
