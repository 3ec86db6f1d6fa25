"""Optimizer steps of a Llama shape with random weights: seconds, share of the card, memory against the plan."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.gpu.measuring import release
from benchmarks.lengths import rows as made_rows
from benchmarks.llama import RANK, as_trained, floor_flops, random_llama, text_tokens
from proxykd.config import (
    AlignmentConfig,
    DistillationConfig,
    LoraConfig,
    ModelConfig,
    TrainConfig,
    validate_config,
)
from proxykd.costs.memory_plan import Footprint, trainer_footprint
from proxykd.models import batching, packed_attention
from proxykd.models.architecture import PUBLISHED, Architecture
from proxykd.models.micro_batches import plan_micro_batches
from proxykd.models.parallel import Workers
from proxykd.models.scorer import CompletionScorer
from proxykd.training.stage_losses import AlignmentLoss, DistillationLoss, SftLoss
from proxykd.training.trainer import Trainer

GIB = 2**30


@dataclass(frozen=True)
class Case:
    """One way to take steps. `form`: `packed` is what training does; `groups` packs, with attention padded by groups;
    `padded` pads whole sequences, the prompt of a pair twice; `peft` leaves the adapters' products to PEFT, in float32;
    `bfloat16` multiplies in it what is held in float32; `compiled` has its layers by torch.compile; `liger` has its
    kernels in the packed layers."""

    stage: str
    method: str = "lora"
    form: str = "packed"
    checkpointing: bool = False
    tokens: int = 16_384
    shape: str = "llama-3-1b"
    layers: int = 16
    records: int = 64

    @property
    def dtype(self) -> str:
        return "bfloat16" if self.method == "lora" else "float32"

    @property
    def arch(self) -> Architecture:
        return replace(PUBLISHED[self.shape], layers=self.layers)


FULL_TOKENS = 8192
CASES = [
    *(Case(stage, form=form) for stage in ("sft", "align") for form in ("packed", "groups", "padded")),
    Case("distil"),
    Case("align", checkpointing=True),
    Case("sft", shape="llama-3-8b", layers=4),
    *(Case(stage, "full", tokens=FULL_TOKENS) for stage in ("sft", "distil")),
    Case("sft", "full", tokens=FULL_TOKENS, checkpointing=True),
    Case("sft", "full", "bfloat16", tokens=FULL_TOKENS),
    Case("sft", form="peft"),
    Case("sft", form="liger"),
    Case("sft", form="compiled"),
    Case("align", form="compiled"),
    Case("sft", "full", "compiled", tokens=FULL_TOKENS),
]
STEPS = 4


def measure(matrix_rate: float) -> Iterator[dict[str, Any]]:
    torch.set_float32_matmul_precision("high")  # as training/worker.py does
    for case in CASES:
        row: dict[str, Any] = {
            "shape": f"{case.layers} layers of {case.shape}",
            "stage": case.stage,
            "method": case.method,
            "form": case.form + (", recomputed" if case.checkpointing else ""),
            "budget": case.tokens,
        }
        try:
            row |= _measured(case, matrix_rate)
        except Exception as error:  # no memory for a case, or a package that it needs: the others count
            row["error"] = f"{type(error).__name__}: {error}"[:300]
        release()
        yield row


def _measured(case: Case, matrix_rate: float) -> dict[str, Any]:
    began = time.perf_counter()
    with ExitStack() as stack:
        step = trainer_and_loss(case, stack)
        step()
        torch.cuda.reset_peak_memory_stats()
        step()
        peak = torch.cuda.max_memory_allocated() / GIB
        warm_s = time.perf_counter() - began
        seconds = []
        for _ in range(STEPS):
            torch.cuda.synchronize()
            began = time.perf_counter()
            step()
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
    plan, best = planned(case).total, min(seconds)
    return {
        "s/step": best,
        "tokens/s": text_tokens(_rows(case), case.stage) / best,
        **shares(case, _rows(case), best, matrix_rate),
        "GiB": peak,
        "tokens": largest_micro_batch(case),
        "planned": plan,
        "of plan": peak / plan,
        "warm s": warm_s,
    }


def trainer_and_loss(case: Case, stack: ExitStack | None = None) -> Callable[[], Any]:
    """A step of it, with a trainer and rows of its own. `stack` undoes what a form has patched."""
    stack = stack or ExitStack()
    if case.form == "padded":
        stack.enter_context(patch.object(batching, "LIKE", 0.0))
    if case.form == "groups":
        stack.enter_context(patch.object(packed_attention, "takes_flash", lambda *_: False))
    scorer = CompletionScorer(model(case), case.arch.vocabulary)
    scorer.packs = case.form != "padded"
    if case.checkpointing:
        scorer.checkpoint_layers()
    if case.form == "compiled":
        scorer.compile_layers()
    if case.form == "peft":
        scorer._adapters = []
    if case.form == "bfloat16":
        scorer.hidden = torch.autocast("cuda", torch.bfloat16)(scorer.hidden)  # type: ignore[method-assign]
    workers = Workers(device=torch.device("cuda"))
    trainer = Trainer(scorer, TrainConfig(grad_norms_every=10**9), workers, case.tokens, total_steps=1)
    trainer.steps = 1  # no step that measures the terms apart
    rows = _rows(case)
    losses: dict[str, Callable[[], Any]] = {
        "sft": lambda: SftLoss(rows),
        "distil": lambda: DistillationLoss(rows, DistillationConfig()),
        "align": lambda: AlignmentLoss(rows, AlignmentConfig()),
    }
    return lambda: trainer.step(rows, losses[case.stage]())


def model(case: Case) -> Any:
    found = random_llama(case.arch, case.dtype, "cuda", case.method == "lora")
    if case.form == "liger":
        from liger_kernel.transformers.monkey_patch import _apply_liger_kernel_to_instance

        inner = found.get_base_model() if case.method == "lora" else found
        _apply_liger_kernel_to_instance(model=inner, fused_linear_cross_entropy=False, cross_entropy=False)
    return found


def _rows(case: Case) -> list[dict[str, Any]]:
    return as_trained(made_rows(case.records, case.arch.vocabulary), case.stage, case.form == "padded")


def shares(case: Case, rows: list[dict[str, Any]], seconds: float, matrix_rate: float) -> dict[str, float]:
    """What a step's products come to a second, in TFLOPs, and as a share of what a large bfloat16 product reaches.

    Attention, prompts computed again and recomputed layers are no part of them."""
    rate = floor_flops(case.arch, rows, case.stage, case.method == "lora") / seconds
    return {"TFLOP/s": rate / 1e12, "of the card": rate / matrix_rate}


def largest_micro_batch(case: Case) -> int:
    """Its tokens."""
    lengths = [row["length"] for row in _rows(case)]
    return max(sum(lengths[index] for index in part) for part in plan_micro_batches(lengths, case.tokens))


def planned(case: Case) -> Footprint:
    """What the plan says of a worker whose micro-batches are that large."""
    shape = ModelConfig(source=case.shape, dtype=case.dtype, method=case.method, lora=LoraConfig(rank=RANK))
    shape = shape.model_copy(update={"drop_layers": tuple(range(PUBLISHED[case.shape].layers - case.layers))})
    named = {"source": case.shape}
    resources = {"device": "gpu", "micro_batch_tokens": largest_micro_batch(case)}
    raw = {"name": "gpu", "corpus": {"path": "-"}, "proxy": named, "student": named, "resources": resources}
    stage = TrainConfig(gradient_checkpointing=case.checkpointing)
    config, pairs = validate_config(raw, "benchmarks.gpu"), case.stage == "align"
    return trainer_footprint("one worker", shape, (stage,), config, pairs=pairs)
