"""What training steps hold at most on each of two workers, and what memory_plan says: all kinds, on a small model."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.peak_memory import Alive
from proxykd.config import AlignmentConfig, LoraConfig, ModelConfig, RunConfig, TrainConfig, validate_config
from proxykd.costs.memory_plan import GIB, Footprint, trainer_footprint
from proxykd.models.loading import attach_lora
from proxykd.models.parallel import Workers
from proxykd.models.scorer import CompletionScorer
from proxykd.training.stage_losses import AlignmentLoss, SftLoss
from proxykd.training.trainer import Trainer

WORKERS = 2
STEPS = 2
KINDS = (("lora", "float32"), ("lora", "bfloat16"), ("full", "float32"))
"""What a run may train: full training is refused in bfloat16."""


@dataclass(frozen=True)
class Case:
    """One way to train. `terms` is 2 for the loss of a round, whose gradient norms are measured term by term."""

    parallel: str
    method: str
    dtype: str
    gradient_checkpointing: bool
    terms: int = 1

    @property
    def name(self) -> str:
        recomputed = "checkpointing" if self.gradient_checkpointing else ""
        return f"{self.parallel:<6}{self.method:<5}{self.dtype:<9}{self.terms} term(s) {recomputed}"


CASES = [
    *(Case(p, m, d, c) for p, (m, d), c in product(("ddp", "fsdp2"), KINDS, (False, True))),
    *(Case(p, *KINDS[0], False, 2) for p in ("ddp", "fsdp2")),
]


def write_shape(folder: Path, tied: bool = False, **settings: int) -> Path:
    """A Llama's config.json, which is all that measuring and planning need of it."""
    from transformers import LlamaConfig

    LlamaConfig(tie_word_embeddings=tied, **settings).save_pretrained(folder)
    return folder


def planned(case: Case, shape: Path, tokens: int) -> Footprint:
    stage = TrainConfig(gradient_checkpointing=case.gradient_checkpointing)
    return trainer_footprint(
        "one worker", _model(case, shape), (stage,), _config(case, shape, tokens), terms=case.terms
    )


def measure(case: Case, shape: Path, tokens: int) -> int:
    """Bytes that this worker holds at most in a step, Adam's moments there; the fewest of some steps, since gloo's
    threads may hold on to what they sent for longer than its time.

    Every worker must call it, within an initialised process group.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    workers = Workers.current(case.parallel, torch.device("cpu"))
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(shape), dtype=getattr(torch, case.dtype))
    if case.method == "lora":
        model = attach_lora(model, _model(case, shape).lora, seed=0)
    scorer = CompletionScorer(model.eval(), model.config.vocab_size)
    before = sum(p.nbytes for p in scorer.parameters()) if case.parallel == "ddp" else 0
    peaks = []
    with Alive() as alive:
        scorer = workers.place(scorer)
        if case.gradient_checkpointing:
            scorer.checkpoint_layers()
        trainer = Trainer(scorer, TrainConfig(grad_norms_every=1), workers, tokens, total_steps=1)
        rows = _rows(case.terms, 2 * WORKERS * tokens)
        for _ in range(1 + STEPS):
            alive.restart()
            trainer.step(rows, SftLoss(rows) if case.terms == 1 else AlignmentLoss(rows, AlignmentConfig()))
            peaks.append(alive.peak)
    return before + min(peaks[1:])


def row(case: Case, shape: Path, tokens: int, measured: int) -> str:
    plan = planned(case, shape, tokens)
    parts = "  ".join(f"{value * 1024:8.1f}" for value in plan.parts.values())
    return (
        f"{case.name:<38} {parts} {plan.total * 1024:9.1f} {measured / 2**20:9.1f} {plan.total * GIB / measured:8.2f}"
    )


def _rows(terms: int, tokens: int, length: int = 64) -> list[dict[str, Any]]:
    """Micro-batches that are full: prompts of half a length, and what is left of a length a term for completions. Their
    last tokens are no inputs."""
    prompt = length // 2
    completion = (terms * length - prompt) // terms + 1
    sides = {"prompt_ids": [5] * prompt, "completion_ids": [6] * completion, "length": terms * length}
    if terms == 2:
        sides |= {"rejected_ids": [7] * completion, "reference_chosen": -200.0, "reference_rejected": -200.0}
    return [{"index": i, **sides} for i in range(tokens // (terms * length))]


def _model(case: Case, shape: Path) -> ModelConfig:
    return ModelConfig(source=str(shape), dtype=case.dtype, method=case.method, lora=LoraConfig(rank=8))


def _config(case: Case, shape: Path, tokens: int) -> RunConfig:
    resources = {"trainer_workers": WORKERS, "parallel": case.parallel, "micro_batch_tokens": tokens}
    model = {"source": str(shape)}
    raw = {"name": "peaks", "corpus": {"path": "-"}, "proxy": model, "student": model, "resources": resources}
    return validate_config(raw, "step_peaks")
