"""The whole method on a corpus as it grows: seconds of each stage, and the memory of every process over time.

    python -m benchmarks.scale [--records 100000 1000000] [--out FOLDER]

`proxykd run` itself, on synthetic records a sixth as long as OpenOrca's and models of 0.1 M parameters with random
weights: ingest, a warm-up on a hundredth, two rounds of 10,000 pairs, labels of nine tenths, and a student that learns
from the first 100,000 of these, after which the run is stopped. Nothing of the result means anything, all of the time
and memory does. FOLDER gets scale.json and scale.svg.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from benchmarks.ingest import write_text
from benchmarks.llama import random_llama
from benchmarks.process_memory import Watched
from proxykd.models.architecture import Architecture
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import read_json
from proxykd.stages.table import finished_stages
from tests.tiny_model import make_tokenizer

LENGTHS = 1 / 6
DISTILLED = 100_000
BATCH = 256
SHAPE = Architecture(layers=2, hidden=64, intermediate=192, heads=2, kv_heads=1, head_dim=32, vocabulary=320, tied=True)
ROLES = ("driver", "coordinator", "reader", "worker", "trainer", "replica", "engine", "Ray's own", "raylet", "gcs")


def config_of(folder: Path, records: int, pairs: int) -> dict[str, Any]:
    model = {"source": str(folder / "model"), "dtype": "float32"}
    return {
        "name": f"scale-{records}",
        "runs_dir": str(folder / "runs"),
        "corpus": {
            "path": str(folder / f"{records}.jsonl"),
            "max_length": 512,
            "shard_records": 2048,
            "split": {"validation": 0.002, "test": 0.002, "warmup": 0.01, "alignment": 0.05, "distillation": 0.94},
        },
        "proxy": {**model, "lora": {"rank": 8}},
        "student": {**model, "method": "full"},
        "warmup": {"learning_rate": 1e-3, "global_batch": 64},
        "alignment": {
            "rounds": 2, "pairs_per_round": pairs, "learning_rate": 1e-4, "global_batch": 64, "max_new_tokens": 16,
            "parity_records": 4,
        },
        "score": {"source": "trainer", "top_k": 4},
        "distillation": {"learning_rate": 1e-3, "global_batch": BATCH, "evaluations": 1},
        "engine": {"dtype": "float32"},
        "resources": {"micro_batch_tokens": 8192, "engine_max_seqs": 256, "trainer_threads": 1},
    }  # fmt: skip


def measure(folder: Path, records: int, pairs: int) -> dict[str, Any]:
    """Seconds of each stage and MiB of each role over time, of a run on so many records."""
    write_text(folder / f"{records}.jsonl", records, LENGTHS)
    config = folder / f"{records}.yaml"
    config.write_text(yaml.safe_dump(config_of(folder, records, pairs)))
    command, began = Path(sys.executable).with_name("proxykd"), time.time()
    with Watched(driver=False) as watched, subprocess.Popen([command, "run", str(config)]) as going:
        distilling = _distilled(folder / "runs", records, going)
        if going.poll() is None:
            [path] = (folder / "runs").glob(f"scale-{records}-*")
            subprocess.run([command, "stop", str(path), "--now"], check=True)
    [path] = (folder / "runs").glob(f"scale-{records}-*")
    run = RunDirectory.open(path)
    stages = [(one.stage, one.round, one.seconds) for one in finished_stages(run) if one.stage not in LATE]
    stages.append((f"distil {DISTILLED:,}", None, distilling))
    disk = sum(one.stat().st_size for one in path.rglob("*") if one.is_file() and not one.is_symlink())
    return {
        "records": records,
        "seconds": time.time() - began,
        "stages": stages,
        "disk_gib": disk / 2**30,
        "peak_mib": {role: watched.peak(role) for role in ROLES},
        "memory_mib": watched.samples,
    }


def _distilled(runs: Path, records: int, going: subprocess.Popen[bytes]) -> float:
    """Seconds until so much of the distillation is done, its workers' start among them; waits for it, or for the run's
    end.

    Raises:
        RuntimeError: the run ended before its distillation.
    """
    began = None
    while going.poll() is None:
        time.sleep(1.0)
        for path in runs.glob(f"scale-{records}-*/live.json"):
            live = read_json(path)
            if live.get("stage") == "distil":
                began = began or live["started"]
                over = live["total"] and live["done"] * BATCH >= min(DISTILLED, live["total"] * BATCH)
            else:
                over = began is not None
            if over:
                return time.time() - began
    if began is None:
        raise RuntimeError(f"the run of {records} records ended with {going.returncode} before its distillation")
    return time.time() - began


LATE = ("distil", "evaluate")
"""Stages that are not measured as a whole."""


def draw(found: list[dict[str, Any]], path: Path) -> None:
    """Memory of each role over the share of the run that is over, a panel for each corpus."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(len(found), 1, figsize=(9, 3.2 * len(found)), sharey=True, squeeze=False)
    for panel, one in zip(panels[:, 0], found, strict=True):
        for number, role in enumerate(ROLES):
            curve = [(seconds / 60, sample.get(role, math.nan)) for seconds, sample in one["memory_mib"]]
            if any(role in sample for _, sample in one["memory_mib"]):
                panel.plot(*zip(*curve, strict=True), label=role, color=f"C{number}", linewidth=1)
        panel.set_title(f"{one['records']:,} records", loc="left")
        panel.set_xlabel("minutes")
        panel.set_ylabel("MiB of the largest process")
        panel.set_ylim(0)
    panels[0, 0].legend(ncols=len(ROLES), loc="upper left", bbox_to_anchor=(0, 1.35), fontsize=7, frameon=False)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--pairs", type=int, default=10_000, help="a round")
    parser.add_argument("--out", type=Path, default=Path())
    args = parser.parse_args()
    if any(records * 0.05 < args.pairs for records in args.records):
        print("a twentieth of the records is less than a round's pairs: rounds go over it again", file=sys.stderr)
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_tokenizer().save_pretrained(folder / "model")
        random_llama(SHAPE, "float32", lora=False).save_pretrained(folder / "model")
        for records in args.records:
            found.append(measure(folder, records, args.pairs))
            args.out.mkdir(parents=True, exist_ok=True)
            (args.out / "scale.json").write_text(json.dumps(found))
    found.sort(key=lambda one: one["records"])
    print_tables(found)
    draw(found, args.out / "scale.svg")


def print_tables(found: list[dict[str, Any]]) -> None:
    titles = [f"{one['records']:,} records" for one in found]
    seconds, memory = (Table("", *titles, title=name, title_justify="left") for name in ("seconds", "MiB at most"))
    for number, (stage, round_number, _) in enumerate(found[0]["stages"]):
        name = stage if round_number is None else f"{stage} {round_number}"
        seconds.add_row(name, *(f"{one['stages'][number][2]:.0f}" for one in found))
    seconds.add_row("all, with starts", *(f"{one['seconds']:.0f}" for one in found))
    for role in ROLES:
        memory.add_row(role, *(f"{one['peak_mib'][role]:.0f}" for one in found))
    memory.add_row("on disk, GiB", *(f"{one['disk_gib']:.2f}" for one in found))
    console = Console(width=100)
    console.print(f"{os.cpu_count()} cores")
    console.print(seconds)
    console.print(memory)


if __name__ == "__main__":
    main()
