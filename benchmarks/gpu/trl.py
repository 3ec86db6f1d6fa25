"""TRL's SFT and DPO trainers on the same rows and the same model, at several sizes of a device batch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.gpu.measuring import release
from benchmarks.gpu.steps import GIB, STEPS, Case, model, shares
from benchmarks.lengths import rows as made_rows
from benchmarks.llama import text_tokens
from benchmarks.trl import seconds_of_steps

SIZES = {"sft": (8, 16, 32), "align": (4, 8, 16)}
"""Sequences, or pairs, of a device batch."""


def measure(matrix_rate: float) -> Iterator[dict[str, Any]]:
    for stage, sizes in SIZES.items():
        for size in sizes:
            row: dict[str, Any] = {"stage": stage, "method": "lora", "form": "TRL", "budget": size}
            try:
                row |= _measured(Case(stage), size, matrix_rate)
            except Exception as error:  # not carried, or no memory at this size
                row["error"] = f"{type(error).__name__}: {error}"[:300]
            release()
            yield row


def _measured(case: Case, size: int, matrix_rate: float) -> dict[str, Any]:
    rows = made_rows(case.records, case.arch.vocabulary)
    made = model(case)
    torch.cuda.reset_peak_memory_stats()
    best = min(seconds_of_steps(case.stage, made, rows, size, STEPS + 1, _now, bf16=True)[1:])
    return {
        "s/step": best,
        "tokens/s": text_tokens(rows, case.stage) / best,
        **shares(case, rows, best, matrix_rate),
        "GiB": torch.cuda.max_memory_allocated() / GIB,
    }


def _now() -> float:
    """Seconds, once the card has done what it was given."""
    torch.cuda.synchronize()
    return time.perf_counter()
