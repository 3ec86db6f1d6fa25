"""Memory of a step on the GPU: what recomputing layers saves, and what `proxykd plan` says."""

from __future__ import annotations

import pytest
import torch

from benchmarks.gpu.measuring import release
from benchmarks.gpu.steps import RANK, Case, model, planned, trainer_and_loss
from proxykd.config import LoraConfig, ModelConfig
from proxykd.costs.memory_plan import GIB, kept_for_backward
from proxykd.models.batching import collate
from proxykd.models.scorer import CompletionScorer

LAYERS, TOKENS = 4, 8192
METHODS = ("lora", "full")


@pytest.mark.parametrize("method", METHODS)
def test_activations_are_what_autograd_keeps(method, figure):
    """The difference of two depths: bytes of distinct tensors saved for backward, weights and what is padded aside."""
    sequences, length = 4, 512
    batch = collate([[5] * 256] * sequences, [[6] * (length - 255)] * sequences).to(torch.device("cuda"))

    def kept(layers: int) -> float:
        scorer = CompletionScorer(model(Case("sft", method, layers=layers)), 1000)
        weights = {p.untyped_storage().data_ptr() for p in scorer.parameters()}
        saved = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                saved[storage.data_ptr()] = storage  # held, so that no address comes twice

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda nothing: nothing):
            scorer.hidden(batch)
        return sum(storage.nbytes() for storage in saved.values()) / (sequences * length)

    case = Case("sft", method)
    found, adapters = kept(3) - kept(2), case.arch.lora_parameters(RANK) / case.arch.layers
    if method == "lora":  # their copies in bfloat16 are no activations
        found -= 2 * adapters / (sequences * length)
    settings = ModelConfig(source="x", dtype=case.dtype, method=method, lora=LoraConfig(rank=RANK))
    expected = kept_for_backward(case.arch, settings, "gpu")
    figure(f"{found:.0f} bytes a token and layer, planned {expected:.0f}")
    assert found == pytest.approx(expected, rel=0.02)


def peak_gib(case: Case) -> float:
    """Of a step whose moments are there."""
    release()
    before = torch.cuda.memory_allocated()
    step = trainer_and_loss(case)
    step()
    torch.cuda.reset_peak_memory_stats()
    step()
    return (torch.cuda.max_memory_allocated() - before) / GIB


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stage", ["sft", "align"])
def test_a_step_holds_what_is_planned(stage, method, figure):
    """At most the plan's sum, and recomputed layers save what the plan says."""
    plans, found = [], []
    for checkpointing in (False, True):
        case = Case(stage, method, layers=LAYERS, tokens=TOKENS, checkpointing=checkpointing)
        plans.append(planned(case))
        found.append(peak_gib(case))
        parts = ", ".join(f"{part} {value:.2f}" for part, value in plans[-1].parts.items())
        name = "recomputed" if checkpointing else "plain"
        figure(f"{name} {found[-1]:.2f} GiB, planned {plans[-1].total:.2f} ({parts})")
    saved, promised = found[0] - found[1], plans[0].total - plans[1].total
    figure(f"recomputing saves {saved:.2f} GiB, planned {promised:.2f}")
    assert saved > 0.6 * promised
    for peak, plan in zip(found, plans, strict=True):
        assert plan.total - plan.parts["working"] < peak < plan.total
