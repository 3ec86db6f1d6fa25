"""Memory of a step on the GPU: what recomputing layers saves, and what `proxykd plan` says."""

from __future__ import annotations

import gc

import pytest
import torch

from benchmarks.gpu.steps import Case, planned, trainer_and_loss

GIB = 2**30
LAYERS, TOKENS = 4, 4096


def peak_gib(case: Case) -> float:
    """Of a step whose moments are there."""
    step = trainer_and_loss(case)
    step()
    torch.cuda.reset_peak_memory_stats()
    step()
    found = torch.cuda.max_memory_allocated() / GIB
    del step
    gc.collect()
    torch.cuda.empty_cache()
    return found


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("stage", ["sft", "align"])
def test_a_step_holds_what_is_planned(stage, method, figure):
    """At most the plan's sum, and recomputed layers save what the plan says."""
    plain, recomputed = (
        Case(stage, method, layers=LAYERS, tokens=TOKENS, checkpointing=checkpointing, records=24)
        for checkpointing in (False, True)
    )
    plans = [planned(case) for case in (plain, recomputed)]
    found = [peak_gib(case) for case in (plain, recomputed)]
    for name, peak, plan in zip(("plain", "recomputed"), found, plans, strict=True):
        parts = ", ".join(f"{part} {value:.2f}" for part, value in plan.parts.items())
        figure(f"{name} {peak:.2f} GiB, planned {plan.total:.2f} ({parts})")
    saved, promised = found[0] - found[1], plans[0].total - plans[1].total
    figure(f"recomputing saves {saved:.2f} GiB, planned {promised:.2f}")
    assert saved > 0.6 * promised
    for peak, plan in zip(found, plans, strict=True):
        assert 0.7 * plan.total < peak < 1.05 * plan.total
