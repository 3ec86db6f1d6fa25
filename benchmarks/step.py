"""One optimizer step of SFT, distillation and alignment: packed against padded, and against TRL's DPO.

    python -m benchmarks.step [--shape smollm2-135m] [--dtype float32] [--budgets 1024 2048] [--scale 0.5] [--trl]

LoRA of rank 16 on a model of that shape with random weights; records of the lengths of benchmarks/lengths.py,
shortened by `scale`. `packed` is what training does: no padding but in attention, the prompt of a pair once. `padded`
runs the same rows as [rows, longest], the prompt of a pair twice. TRL (PyPI's trl, not a dependency) pads each of its
device batches and has its references precomputed, as here; `budget` is then its pairs a device batch.

Every line is a process of its own on one thread: seconds are the process's, so that other work on the machine counts
little, the best of the steps; text tokens are those of the sequences, prompts of pairs twice, whatever is computed;
memory is the rise of the peak resident set over what it was before the step. The floor is what its matrix products take
at the speed of a large one on this thread: 4 operations a weight of the layers and token (LoRA needs no gradient of
them), 4 a weight of the head and completion token, each prompt token once, attention left out.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.lengths import rows as make_rows
from benchmarks.peak_memory import peak_mib, reset_peak_mib
from proxykd.models.architecture import PUBLISHED, Architecture

RANK, TOP_K = 16, 10
STAGES = ("sft", "distil", "align")


def measure(stage: str, form: str, budget: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds of a step and MiB that it adds, in this process."""
    import torch

    torch.set_num_threads(1)
    rows = make_rows(arguments.records, shape(arguments).vocabulary, scale=arguments.scale)
    steps = _trl if form == "trl" else _ours
    seconds, mib = steps(stage, form, budget, rows, arguments)
    return {"seconds": seconds, "mib": mib, "matmul": _matmul_flops(torch)}


def _ours(
    stage: str, form: str, budget: int, rows: list[dict[str, Any]], arguments: argparse.Namespace
) -> tuple[float, float]:
    from proxykd.config import AlignmentConfig, DistillationConfig, TrainConfig
    from proxykd.models import batching
    from proxykd.models.parallel import Workers
    from proxykd.models.scorer import CompletionScorer
    from proxykd.training.stage_losses import AlignmentLoss, DistillationLoss, SftLoss
    from proxykd.training.trainer import Trainer

    arch = shape(arguments)
    scorer = CompletionScorer(_model(arguments), arch.vocabulary)
    sides = 2 if stage == "align" else 1
    if form == "padded":
        scorer.packs, batching.LIKE = False, 0.0
    trainer = Trainer(scorer, TrainConfig(grad_norms_every=10**9), Workers(), budget, total_steps=1)
    trainer.steps = 1  # no step that measures the terms apart
    for row in rows:
        completions = [len(row["completion_ids"]), len(row["rejected_ids"])][:sides]
        row["length"] = len(row["prompt_ids"]) + sum(completions)
        if form == "padded":
            row["length"] = sides * (len(row["prompt_ids"]) + max(completions))
        row |= {"reference_chosen": -100.0, "reference_rejected": -100.0, "trust": 0.5, "soft_labels": soft_labels(row)}
    losses: dict[str, Callable[[], Any]] = {
        "sft": lambda: SftLoss(rows),
        "distil": lambda: DistillationLoss(rows, DistillationConfig()),
        "align": lambda: AlignmentLoss(rows, AlignmentConfig()),
    }
    return _best(lambda: trainer.step(rows, losses[stage]()), arguments.steps)


def _trl(
    stage: str, form: str, budget: int, rows: list[dict[str, Any]], arguments: argparse.Namespace
) -> tuple[float, float]:
    import tempfile

    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer

    from tests.tiny_model import make_tokenizer

    names = {"prompt_ids": "prompt_ids", "completion_ids": "chosen_ids", "rejected_ids": "rejected_ids"}
    data = Dataset.from_list([{theirs: row[ours] for ours, theirs in names.items()} for row in rows])

    class OfIds(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

    class Clock(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.began, self.seconds = 0.0, list[float]()

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.process_time()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds.append(time.process_time() - self.began)

    with tempfile.TemporaryDirectory() as folder:
        config = DPOConfig(
            output_dir=folder, per_device_train_batch_size=budget,
            gradient_accumulation_steps=max(1, arguments.records // budget),
            max_steps=arguments.steps, loss_type=["sigmoid", "sft"], precompute_ref_log_probs=True, max_length=None,
            gradient_checkpointing=False, use_cpu=True, bf16=arguments.dtype == "bfloat16", report_to=[],
            save_strategy="no", logging_steps=10**6, disable_tqdm=True,
        )  # fmt: skip
        clock = Clock()
        trainer = OfIds(
            model=_model(arguments), args=config, train_dataset=data, processing_class=make_tokenizer(),
            callbacks=[clock],
        )  # fmt: skip
        before = reset_peak_mib()
        trainer.train()
    return min(clock.seconds), peak_mib() - before


def _best(step: Callable[[], Any], steps: int) -> tuple[float, float]:
    before = reset_peak_mib()
    seconds = []
    for _ in range(steps):
        began = time.process_time()
        step()
        seconds.append(time.process_time() - began)
    return min(seconds), peak_mib() - before


def _model(arguments: argparse.Namespace) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from proxykd.config import LoraConfig
    from proxykd.models.loading import attach_lora

    arch = shape(arguments)
    settings = LlamaConfig(
        vocab_size=arch.vocabulary, hidden_size=arch.hidden, intermediate_size=arch.intermediate,
        num_hidden_layers=arch.layers, num_attention_heads=arch.heads, num_key_value_heads=arch.kv_heads,
        head_dim=arch.head_dim, tie_word_embeddings=arch.tied, max_position_embeddings=2048,
    )  # fmt: skip
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(settings).to(getattr(torch, arguments.dtype))
    return attach_lora(model, LoraConfig(rank=RANK), seed=0).eval()


def soft_labels(row: dict[str, Any]) -> Any:
    """A record's labels of TOP_K ids, all alike, that hold nine tenths."""
    import numpy as np

    from proxykd.data.soft_labels import SoftLabels

    tokens = len(row["completion_ids"])
    ids = (np.array(row["completion_ids"])[:, None] + np.arange(TOP_K)) % 30_000
    logps = np.full((tokens, TOP_K), np.log(0.9 / TOP_K))
    return SoftLabels(str(row["index"]), "", ids, logps, np.full(tokens, np.log(0.1)), logps[:, 0], 0.0)


def _matmul_flops(torch: Any) -> float:
    """Operations a second of this thread in a large float32 product, the best of five."""
    one, other = torch.randn(1024, 1536), torch.randn(1536, 1024)
    seconds = []
    for _ in range(5):
        began = time.process_time()
        one @ other
        seconds.append(time.process_time() - began)
    return 2 * 1024 * 1536 * 1024 / min(seconds)


def shape(arguments: argparse.Namespace) -> Architecture:
    whole = PUBLISHED[arguments.shape]
    return replace(whole, layers=arguments.layers or whole.layers)


def floor_flops(arch: Architecture, rows: list[dict[str, Any]], sides: int, trained: bool = False) -> float:
    """Operations of a step's products; where all weights are trained, 6 a weight and token in place of 4."""
    keys = ("completion_ids", "rejected_ids")[:sides]
    completion = sum(len(row[key]) for row in rows for key in keys)
    tokens = completion + sum(len(row["prompt_ids"]) for row in rows)
    return (6 if trained else 4) * (arch.layers * arch.layer_linear * tokens + arch.head * completion)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="smollm2-135m", choices=sorted(PUBLISHED))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--budgets", type=int, nargs="+", default=[1024, 2048])
    parser.add_argument("--scale", type=float, default=0.5)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--records", type=int, default=32)
    parser.add_argument("--layers", type=int, help="of the shape, for a shorter run; all by default")
    parser.add_argument("--stages", nargs="+", default=STAGES, choices=STAGES)
    parser.add_argument("--trl", action="store_true")
    parser.add_argument("--one", nargs=3, metavar=("STAGE", "FORM", "BUDGET"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        stage, form, budget = arguments.one
        print(json.dumps(measure(stage, form, int(budget), arguments)))
        return
    import torch

    arch = shape(arguments)
    rows = make_rows(arguments.records, arch.vocabulary, scale=arguments.scale)
    print(f"{platform.machine()}, torch {torch.__version__}, {arguments.shape}, {arguments.dtype}, one thread")
    print(f"{'stage':<7} {'form':<7} {'budget':>6} {'s/step':>7} {'tokens/s':>9} {'MiB':>6} {'of the floor':>12}")
    for stage in arguments.stages:
        sides = 2 if stage == "align" else 1
        text = sum(sides * len(row["prompt_ids"]) + len(row["completion_ids"]) for row in rows)
        text += sum(len(row["rejected_ids"]) for row in rows) if sides == 2 else 0
        cases = [(form, budget) for form in ("packed", "padded") for budget in arguments.budgets]
        if arguments.trl and stage == "align":
            cases += [("trl", pairs) for pairs in (1, 2, 4)]
        for form, budget in cases:
            found = _in_process(stage, form, budget)
            floor = floor_flops(arch, rows, sides) / found["matmul"]
            print(
                f"{stage:<7} {form:<7} {budget:>6} {found['seconds']:>7.1f} {text / found['seconds']:>9.0f} "
                f"{found['mib']:>6.0f} {floor / found['seconds']:>12.0%}",
                flush=True,
            )


def _in_process(stage: str, form: str, budget: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.step", *sys.argv[1:], "--one", stage, form, str(budget)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
