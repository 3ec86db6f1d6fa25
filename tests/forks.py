"""Processes of their own without the seconds of their imports: each is forked from one that has made them."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

IMPORTED = (
    "openai",
    "peft",
    "proxykd.training.loops.on_policy",
    "tests.collect_once",
    "torch.distributed.fsdp",
    "transformers.models.llama.modeling_llama",
)
TIMEOUT_S = 60.0
"""Of one collective: what the slowest rank may do alone, and more."""


def forks() -> ForkServerContext:
    """Starts a Process as `spawn` does, with a function that can be pickled, and none of this process' state."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    return context


def on_ranks(world: int, job: Callable[[], Any], folder: Path) -> list[Any]:
    """What `job`, picklable, returns on each of so many gloo ranks, with a thread each.

    Raises:
        the error of the first that fails, which is what waits for TIMEOUT_S.
    """
    import torch
    import torch.multiprocessing as mp

    folder.mkdir(parents=True, exist_ok=True)
    forks()
    mp.start_processes(_rank, args=(world, job, folder), nprocs=world, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]


def _rank(rank: int, world: int, job: Callable[[], Any], folder: Path) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    timeout = timedelta(seconds=TIMEOUT_S)
    dist.init_process_group("gloo", rank=rank, world_size=world, init_method=f"file://{folder}/store", timeout=timeout)
    torch.save(job(), folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
