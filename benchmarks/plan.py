"""What `proxykd plan` says against what is measured.

    python -m benchmarks.plan            memory of training steps, of every kind, on two gloo workers
    python -m benchmarks.plan engines    memory of real engines on this CPU, merged and lora
    python -m benchmarks.plan RUN        hours of a finished run of this machine, and a step of its models

Seconds are the run's own (stages/*.json). Its steps are measured here: a process that loads each model as a Ray Train
worker does and takes one step on a full micro-batch, its peak resident memory less what it held before the model came.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from benchmarks import engine_peaks, step_peaks
from benchmarks.peak_memory import peak_mib, reset_peak_mib
from proxykd.config import RunConfig
from proxykd.costs.devices import this_cpu
from proxykd.costs.estimator import Text
from proxykd.costs.memory_plan import trainer_footprint
from proxykd.data.corpus_store import read_slice
from proxykd.planning.machine import available_memory_gib
from proxykd.planning.time_plan import estimate
from proxykd.runs.run_directory import RunDirectory
from proxykd.stages.table import finished_stages

TOKENS = 512
SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
}
PLANNED = {"warm-up": "warmup", "sample": "align", "align": "align"}
"""The plan tells sampling from training, a run's stages do not."""


def steps() -> None:
    import torch.multiprocessing as mp

    with tempfile.TemporaryDirectory() as folder:
        shape = step_peaks.write_shape(Path(folder) / "shape", **SHAPE)
        print(f"MiB of each of {step_peaks.WORKERS} workers, {TOKENS} tokens a micro-batch, {SHAPE}")
        print(
            f"{'':<38} {'weights':>8}  {'training':>8}  {'activat.':>8}  {'working':>8} {'planned':>9} {'measured':>9}"
        )
        arguments = (step_peaks.WORKERS, f"{folder}/store", shape)
        mp.spawn(_one_worker, args=arguments, nprocs=step_peaks.WORKERS)


def _one_worker(rank: int, world: int, store: str, shape: Path) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world, init_method=f"file://{store}")
    for case in step_peaks.CASES:
        measured = torch.tensor(step_peaks.measure(case, shape, TOKENS))
        dist.all_reduce(measured, op=dist.ReduceOp.MAX)
        if rank == 0:
            print(step_peaks.row(case, shape, TOKENS, int(measured)), flush=True)


def main(path: str) -> None:
    run = RunDirectory.open(path)
    config = run.config()
    text = corpus_text(run)
    print(f"{run.id}: {text.records} records of {text.prompt:.1f} + {text.completion:.1f} tokens")
    device = this_cpu(available_memory_gib())
    print(f"{device.name}: {device.peak / 1e9:.0f} GFLOP/s, {device.bandwidth / 1e9:.1f} GB/s\n")
    planned: Counter[str] = Counter()
    for stage in estimate(config, text, device):
        planned[PLANNED.get(stage.stage, stage.stage)] += stage.seconds
    used: Counter[str] = Counter()
    for stage in finished_stages(run):
        used[stage.stage] += stage.seconds
    print(f"{'seconds':<18} {'planned':>8} {'used':>8} {'planned/used':>13}")
    for name, seconds in ((name, planned[name]) for name in used if name in planned):
        print(f"{name:<18} {seconds:>8.0f} {used[name]:>8.0f} {seconds / used[name]:>13.2f}")
    print(f"\n{'GiB, one step':<18} {'planned':>8} {'used':>8} {'planned/used':>13}")
    for role in ("proxy", "student"):
        gib = planned_gib(config, role)
        measured = json.loads(
            subprocess.run(
                [sys.executable, "-m", "benchmarks.plan", path, role], check=True, capture_output=True, text=True
            ).stdout
        )
        print(f"{'trainer, ' + role:<18} {gib:>8.2f} {measured:>8.2f} {gib / measured:>13.2f}")


def corpus_text(run: RunDirectory) -> Text:
    rows = [row for name in run.config().corpus.slices for row in read_slice(run, name)]
    prompt, completion = (sum(len(row[f"{kind}_ids"]) for row in rows) / len(rows) for kind in ("prompt", "completion"))
    return Text(len(rows), prompt, completion)


def planned_gib(config: RunConfig, role: str) -> float:
    stages = (config.warmup,) if role == "proxy" else (config.distillation,)
    return trainer_footprint(role, getattr(config, role), stages, config).total


def peak_of_one_step(run: RunDirectory, role: str) -> float:
    """GiB that a step on one full micro-batch adds to a process that has imported everything."""
    import torch

    from proxykd.models.loading import load_scorer
    from proxykd.models.parallel import Workers
    from proxykd.training.stage_losses import SftLoss
    from proxykd.training.trainer import Trainer

    config = run.config()
    before = reset_peak_mib()
    stage = config.warmup if role == "proxy" else config.distillation
    scorer = load_scorer(run.models / role, getattr(config, role))
    trainer = Trainer(scorer, stage, Workers(), config.resources.micro_batch_tokens, total_steps=1)
    length = 64
    rows = [
        {"prompt_ids": [5] * (length // 2), "completion_ids": [6] * (length // 2), "length": length}
        for _ in range(config.resources.micro_batch_tokens // length)
    ]
    torch.manual_seed(0)
    trainer.step(rows, SftLoss(rows))
    return (peak_mib() - before) / 1024


if __name__ == "__main__":
    if len(sys.argv) == 1:
        steps()
    elif sys.argv[1] == "engines":
        engine_peaks.main()
    elif len(sys.argv) == 3:
        print(json.dumps(peak_of_one_step(RunDirectory.open(sys.argv[1]), sys.argv[2])))
    else:
        main(sys.argv[1])
