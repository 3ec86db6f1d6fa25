"""Times and peaks on the GPU, and what it reaches at best."""

from __future__ import annotations

import gc
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

MIB = 2**20


def milliseconds(work: Callable[[], Any], repeats: int = 5, warm: int = 2) -> float:
    """The median, by the device's own clock; the host waits before each."""
    for _ in range(warm):
        work()
    found = []
    for _ in range(repeats):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        began.record()
        work()
        ended.record()
        torch.cuda.synchronize()
        found.append(began.elapsed_time(ended))
    return median(found)


def added_mib(work: Callable[[], Any]) -> float:
    """The rise of the peak of allocated memory over what was there before."""
    release()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    return (torch.cuda.max_memory_allocated() - before) / MIB


def release() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def matrix_rate() -> float:
    """FLOPs a second of a large bfloat16 product of random numbers."""
    size = 8192
    one, other = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / milliseconds(lambda: one @ other, repeats=10) * 1e3
