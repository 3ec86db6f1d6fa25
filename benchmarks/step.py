"""One optimizer step of SFT, distillation and alignment, each form at its best micro-batch, and TRL's SFT and DPO.

    python -m benchmarks.step [--stages sft distil align] [--dtypes float32 bfloat16] [--shape smollm2-135m]
                              [--forms packed compiled padded across TRL] [--layers N] [--records 32] [--scale 0.5]
                              [--steps 2]

LoRA of rank 16 on a model of that shape with random weights; records of the lengths of benchmarks/lengths.py,
shortened by `scale`. `packed` is what training does: no padding but in attention, the prompt of a pair once. `padded`
runs the same rows as [rows, longest], the prompt of a pair twice. `compiled` is `packed` with
`resources.torch_compile`, compiled before the first step. `across` is distilling to a student with a tokenizer of its
own: eight of ten tokens one to one, two a span. TRL (`make .venv/bench`) pads each of
its device batches and has its references precomputed, as here; without it its lines are left out.

The size of a micro-batch (tokens; with TRL sequences or pairs) is doubled until a step takes longer than with the size
before, or there is no larger one. Every line is a process of its own on one thread: seconds are the process's, so that
other work on the machine counts little, the best of the steps; text tokens are those of the sequences, prompts of pairs
twice, whatever is computed; memory is the rise of the peak resident set over what it was before the step. The floor is
what its matrix products take at the speed of a large one in this type on this thread: 4 operations a weight of the
layers and token (LoRA needs no gradient of them), 4 a weight of the head and completion token, each prompt token once,
attention left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import trl
from benchmarks.lengths import rows as made_rows
from benchmarks.llama import as_trained, floor_flops, random_llama, text_tokens
from benchmarks.peak_memory import peak_mib, reset_peak_mib
from proxykd.models.architecture import PUBLISHED, Architecture

STAGES, DTYPES = ("sft", "distil", "align"), ("float32", "bfloat16")
SMALLEST = {"packed": 512, "compiled": 512, "padded": 512, "across": 512, "TRL": 1}
"""The first micro-batch that is tried."""


def measure(stage: str, dtype: str, form: str, size: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds of a step and MiB that it adds, in this process; and the speed of a large product."""
    import torch

    torch.set_num_threads(1)
    arch = shape(arguments)
    rows = as_trained(made_rows(arguments.records, arch.vocabulary, scale=arguments.scale), stage, form == "padded")
    model = random_llama(arch, dtype)
    if form == "TRL":
        before = reset_peak_mib()
        more = {"use_cpu": True, "bf16": dtype == "bfloat16"}
        seconds = trl.seconds_of_steps(stage, model, rows, size, arguments.steps, time.process_time, **more)
    else:
        step = _step(stage, form, size, model, rows)
        before = reset_peak_mib()
        seconds = [_timed(step) for _ in range(arguments.steps)]
    return {"seconds": min(seconds), "mib": peak_mib() - before, "matmul": _matmul_flops(torch, dtype)}


def _step(stage: str, form: str, size: int, model: Any, rows: list[dict[str, Any]]) -> Callable[[], Any]:
    from proxykd.config import AlignmentConfig, DistillationConfig, TrainConfig
    from proxykd.models import batching
    from proxykd.models.parallel import Workers
    from proxykd.models.scorer import CompletionScorer
    from proxykd.training.across_losses import AlignedDistillationLoss
    from proxykd.training.stage_losses import AlignmentLoss, DistillationLoss, SftLoss
    from proxykd.training.trainer import Trainer

    scorer = CompletionScorer(model, model.config.vocab_size)
    if form == "padded":
        scorer.packs, batching.LIKE = False, 0.0
    if form == "compiled":
        _compile(scorer, rows[0])
    trainer = Trainer(scorer, TrainConfig(grad_norms_every=10**9), Workers(), size, total_steps=1)
    trainer.steps = 1  # no step that measures the terms apart
    losses: dict[str, Callable[[], Any]] = {
        "sft": lambda: SftLoss(rows),
        "distil": lambda: (AlignedDistillationLoss if form == "across" else DistillationLoss)(
            rows, DistillationConfig()
        ),
        "align": lambda: AlignmentLoss(rows, AlignmentConfig()),
    }
    return lambda: trainer.step(rows, losses[stage]())


def _compile(scorer: Any, row: dict[str, Any]) -> None:
    """Compiles its layers, which takes a pass over one row."""
    from proxykd.models.batching import collate

    scorer.compile_layers()
    scorer(collate([row["prompt_ids"]], [row["completion_ids"]])).token_logps_N.sum().backward()
    scorer.zero_grad()


def _timed(work: Callable[[], Any]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def _matmul_flops(torch: Any, dtype: str) -> float:
    """Operations a second of this thread in a large product, the best of five."""
    one, other = (torch.randn(size).to(getattr(torch, dtype)) for size in ((1024, 1536), (1536, 1024)))
    return 2 * 1024 * 1536 * 1024 / min(_timed(lambda: one @ other) for _ in range(5))


def shape(arguments: argparse.Namespace) -> Architecture:
    whole = PUBLISHED[arguments.shape]
    return replace(whole, layers=arguments.layers or whole.layers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="smollm2-135m", choices=sorted(PUBLISHED))
    parser.add_argument("--dtypes", nargs="+", default=DTYPES, choices=DTYPES)
    parser.add_argument("--scale", type=float, default=0.5)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--records", type=int, default=32)
    parser.add_argument("--layers", type=int, help="of the shape, for a shorter run; all by default")
    parser.add_argument("--stages", nargs="+", default=STAGES, choices=STAGES)
    parser.add_argument("--forms", nargs="+", default=[*SMALLEST], choices=[*SMALLEST])
    parser.add_argument("--one", nargs=4, metavar=("STAGE", "DTYPE", "FORM", "SIZE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        stage, dtype, form, size = arguments.one
        print(json.dumps(measure(stage, dtype, form, int(size), arguments)))
        return
    has_trl = importlib.util.find_spec("trl") is not None
    packages = [f"{name} {version(name)}" for name in ("torch", "transformers", *(["trl"] if has_trl else []))]
    print(f"{platform.machine()}, {', '.join(packages)}, {arguments.shape}, one thread")
    print("stage   dtype     form      size  s/step  tokens/s    MiB of the floor")
    for stage in arguments.stages:
        for dtype in arguments.dtypes:
            there = {"across": stage == "distil", "TRL": has_trl and stage in trl.STAGES}
            for form in (one for one in arguments.forms if there.get(one, True)):
                _search(stage, dtype, form, arguments)


def _search(stage: str, dtype: str, form: str, arguments: argparse.Namespace) -> None:
    arch = shape(arguments)
    rows = as_trained(made_rows(arguments.records, arch.vocabulary, scale=arguments.scale), stage, form == "padded")
    text, floor = text_tokens(rows, stage), floor_flops(arch, rows, stage)

    def seconds_of(size: int) -> float:
        found = _in_process(stage, dtype, form, size)
        seconds = found["seconds"]
        print(
            f"{stage:<7} {dtype:<9} {form:<7} {size:>6} {seconds:>7.1f} {text / seconds:>9.0f} {found['mib']:>6.0f} "
            f"{floor / found['matmul'] / seconds:>12.0%}",
            flush=True,
        )
        return seconds

    most = len(rows) if form == "TRL" else sum(row["length"] for row in rows)
    size, before = SMALLEST[form], float("inf")
    while (seconds := seconds_of(size)) < before and size < most:
        size, before = 2 * size, seconds


def _in_process(stage: str, dtype: str, form: str, size: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.step", *sys.argv[1:], "--one", stage, dtype, form, str(size)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
