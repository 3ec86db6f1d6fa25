"""What `proxykd plan` says against what a finished run of this machine used.

    python benchmarks/plan.py RUN

Seconds are the run's own (stages/*.json). Memory is measured here: a process that loads each model as a Ray Train
worker does and takes one step on a full micro-batch, its peak resident memory less what it held before the model came.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter

from peak_memory import peak_mib, reset_peak_mib

from proxykd.config import RunConfig
from proxykd.corpus_store import read_slice
from proxykd.machine import available_memory_gib
from proxykd.memory_plan import trainer_footprint
from proxykd.report import finished_stages
from proxykd.storage import RunDirectory
from proxykd.time_plan import Text, estimate, this_cpu

PLANNED = {"warm-up": "warmup", "sample": "align", "align": "align"}
"""The plan tells sampling from training, a run's stages do not."""


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
        used[stage["stage"]] += stage["seconds"]
    print(f"{'seconds':<18} {'planned':>8} {'used':>8} {'planned/used':>13}")
    for name, seconds in ((name, planned[name]) for name in used if name in planned):
        print(f"{name:<18} {seconds:>8.0f} {used[name]:>8.0f} {seconds / used[name]:>13.2f}")
    print(f"\n{'GiB, one step':<18} {'planned':>8} {'used':>8} {'planned/used':>13}")
    for role in ("proxy", "student"):
        gib = planned_gib(config, role)
        measured = json.loads(
            subprocess.run([sys.executable, __file__, path, role], check=True, capture_output=True, text=True).stdout
        )
        print(f"{'trainer, ' + role:<18} {gib:>8.2f} {measured:>8.2f} {gib / measured:>13.2f}")


def corpus_text(run: RunDirectory) -> Text:
    rows = [
        row for name in ("validation", "test", "warmup", "alignment", "distillation") for row in read_slice(run, name)
    ]
    prompt, completion = (sum(len(row[f"{kind}_ids"]) for row in rows) / len(rows) for kind in ("prompt", "completion"))
    return Text(len(rows), prompt, completion)


def planned_gib(config: RunConfig, role: str) -> float:
    stages = (config.warmup,) if role == "proxy" else (config.distillation,)
    return trainer_footprint(role, getattr(config, role), stages, config).total


def peak_of_one_step(run: RunDirectory, role: str) -> float:
    """GiB that a step on one full micro-batch adds to a process that has imported everything."""
    import torch

    from proxykd.models import load_scorer
    from proxykd.parallel import Workers
    from proxykd.stage_losses import SftLoss
    from proxykd.training import Trainer

    config = run.config()
    before = reset_peak_mib()
    stage = config.warmup if role == "proxy" else config.distillation
    scorer = load_scorer(run.models / role, getattr(config, role))
    trainer = Trainer(scorer, stage, Workers(), config.resources.micro_batch_tokens)
    length = 64
    rows = [
        {"prompt_ids": [5] * (length // 2), "completion_ids": [6] * (length // 2), "length": length}
        for _ in range(config.resources.micro_batch_tokens // length)
    ]
    torch.manual_seed(0)
    trainer.step(rows, SftLoss(rows))
    return (peak_mib() - before) / 1024


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(peak_of_one_step(RunDirectory.open(sys.argv[1]), sys.argv[2])))
    else:
        main(sys.argv[1])
