"""What a corpus takes as it grows: memory of every process over time, and seconds, from its text to its shards.

    python -m benchmarks.ingest [--records 20000 80000] [--cores 1 2] [--out ingest.json]

Synthetic records as long as OpenOrca's (about 1.7 KB of text), a tokenizer of a few hundred tokens, a Ray of this
machine. `own` is what a process holds for itself alone; beside it a page cache that maps files comes and goes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
from rich.console import Console
from rich.table import Table

from actors.data.spreading import OnRay
from benchmarks.process_memory import Watched
from proxykd.data.corpus_segments import source_of
from proxykd.data.corpus_store import write_corpus
from proxykd.runs.run_directory import RunDirectory
from tests.small_run import run_config
from tests.tiny_model import WORDS, make_tokenizer

MACHINE = sorted(os.sched_getaffinity(0))
MIB = 2**20


def write_text(path: Path, records: int, scale: float = 1.0) -> None:
    """Prompts and completions of words, as long as OpenOrca's, or `scale` times as long."""
    chance = random.Random(1)
    with path.open("w") as file:
        for number in range(records):
            prompt = " ".join(chance.choices(WORDS, k=max(5, int(scale * chance.lognormvariate(4.6, 0.8)))))
            completion = " ".join(chance.choices(WORDS, k=max(5, int(scale * chance.lognormvariate(5.0, 0.8)))))
            file.write(json.dumps({"id": str(number), "prompt": f"{number} {prompt}", "completion": completion}) + "\n")


def measure(folder: Path, records: int, cores: int) -> dict[str, Any]:
    """Seconds, and each role's peak in MiB, of making a corpus of so many records with so many cores."""
    text, tokenizer = folder / f"{records}.jsonl", folder / "tokenizer"
    if not text.exists():
        write_text(text, records)
    make_tokenizer().save_pretrained(tokenizer)
    corpus = {"path": str(text), "max_length": 2048, "shard_records": 512}
    run = RunDirectory.create(run_config("none", str(folder / f"runs-{records}-{cores}"), corpus=corpus))
    os.sched_setaffinity(0, MACHINE[:cores])
    with Watched() as watched:  # before Ray, which starts workers ahead
        ray.init(num_cpus=cores, include_dashboard=False, object_store_memory=300 * MIB, log_to_driver=False)
        try:
            began = time.monotonic()
            facts = write_corpus(run, run.config(), source_of(run.config()), tokenizer, OnRay())
            seconds = time.monotonic() - began
        finally:
            ray.shutdown()
    disk = sum(path.stat().st_size for path in run.corpus.rglob("*") if path.is_file())
    roles = sorted({role for _, sample in watched.samples for role in sample})
    return {
        "records": facts["records"],
        "cores": cores,
        "text_mib": text.stat().st_size / MIB,
        "corpus_mib": disk / MIB,
        "seconds": seconds,
        "peak_mib": {role: watched.peak(role) for role in roles},
        "memory_mib": watched.samples,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, nargs="+", default=[20_000, 80_000])
    parser.add_argument("--cores", type=int, nargs="+", default=[len(MACHINE)])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    found = []
    table = Table(
        "records", "cores", "text, MiB", "corpus, MiB", "seconds", "own peak, MiB: driver", "reader", "worker"
    )
    with tempfile.TemporaryDirectory() as name:
        for cores in args.cores:
            for records in args.records:
                found.append(measure(Path(name), records, cores))
                one, peaks = found[-1], found[-1]["peak_mib"]
                sizes = [f"{one[key]:.0f}" for key in ("text_mib", "corpus_mib", "seconds")]
                held = [f"{peaks.get(role, 0.0):.0f}" for role in ("driver", "reader", "worker")]
                table.add_row(str(one["records"]), str(cores), *sizes, *held)
    Console(width=120).print(table)
    if args.out is not None:
        args.out.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
