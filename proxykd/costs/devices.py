"""Devices in numbers: GPUs by their makers' figures, this machine's cores as measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """One accelerator, or all cores of a machine. Shares say how much of its peak real work gets."""

    name: str
    memory_gib: float
    peak: float
    """Dense FLOPs a second, in bfloat16 on GPUs."""
    bandwidth: float
    """Bytes a second."""
    training_share: float = 0.35
    full_training_share: float = 0.25
    forward_share: float = 0.5
    bandwidth_share: float = 0.6
    worker_start_s: float = 60.0
    engine_start_s: float = 120.0


GPUS = {
    gpu.name: gpu
    for gpu in (
        Device("a10g-24g", 24, 70e12, 0.6e12),
        Device("l40s-48g", 48, 362e12, 0.86e12),
        Device("a100-40g", 40, 312e12, 1.55e12),
        Device("a100-80g", 80, 312e12, 2.0e12),
        Device("h100-80g", 80, 989e12, 3.35e12, training_share=0.25, full_training_share=0.18),
        Device("h200-141g", 141, 989e12, 4.8e12, training_share=0.25, full_training_share=0.18),
    )
}
"""Their makers' figures. The H100's training shares are of steps of Llama 3.2 1B's shape (docs/performance.md; wider
models reach more); the other cards' and all of inference are guesses."""


def this_cpu(memory_gib: float) -> Device:
    """All cores of this machine, their float32 peak measured (half a second).

    The shares are of runs on two cores of an AMD EPYC (Zen 3): benchmarks/plan.py compares.
    """
    import torch

    square = torch.rand(1536, 1536)
    best = min(_seconds(lambda: square @ square) for _ in range(5))
    block = torch.rand(2**25)
    copied = min(_seconds(block.clone) for _ in range(3))
    return Device(
        f"this machine's {torch.get_num_threads()} cores",
        memory_gib,
        peak=2 * 1536**3 / best,
        bandwidth=2 * 4 * 2**25 / copied,
        training_share=0.7,
        full_training_share=0.7,
        forward_share=0.35,
        bandwidth_share=0.6,
        worker_start_s=35.0,
        engine_start_s=45.0,
    )


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
