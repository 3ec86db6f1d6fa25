"""What a corpus takes as it grows: memory of every process over time, and seconds, from its text to its shards.

    PYTHONPATH=. python benchmarks/scale.py [--records 20000 80000] [--cores 1 2] [--out scale.json]

Synthetic records as long as OpenOrca's (about 1.7 KB of text), a tokenizer of a few hundred tokens, a Ray of this
machine. `own` is what a process holds for itself alone; beside it a page cache that maps files comes and goes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import psutil
import ray
from rich.console import Console
from rich.table import Table

from actors.data.spreading import OnRay
from proxykd.data.corpus_segments import source_of
from proxykd.data.corpus_store import write_corpus
from proxykd.runs.storage import RunDirectory
from tests.small_run import run_config
from tests.tiny_model import WORDS, make_tokenizer

EVERY_S = 0.5
MACHINE = sorted(os.sched_getaffinity(0))
MIB = 2**20


class Watched:
    """The own memory of this process and all below it, by what they are, sampled while it is entered."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, dict[str, float]]] = []
        self._over = threading.Event()

    def __enter__(self) -> Watched:
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(EVERY_S):
            self.samples.append((time.monotonic() - self._began, _own_memory()))

    def peak(self, role: str) -> float:
        """MiB of the largest process of a role."""
        return max((sample.get(role, 0.0) for _, sample in self.samples), default=0.0)


def _own_memory() -> dict[str, float]:
    """MiB by role, of the largest process of each."""
    found: dict[str, float] = defaultdict(float)
    driver = psutil.Process()
    for process in (driver, *driver.children(recursive=True)):
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
            role = "driver" if process == driver else _role(process.cmdline()[0])
        except (OSError, psutil.Error, IndexError):
            continue  # it has ended
        found[role] = max(found[role], int(status.partition("RssAnon:")[2].split()[0]) / 1024)
    return dict(found)


def _role(command: str) -> str:
    if command.startswith("ray::"):
        return {"ray::_done": "worker", "ray::_made": "reader"}.get(command.split()[0].partition("(")[0], "idle")
    return Path(command).name[:20]


def write_text(path: Path, records: int) -> None:
    """Prompts and completions of words, as long as OpenOrca's."""
    chance = random.Random(1)
    with path.open("w") as file:
        for number in range(records):
            prompt = " ".join(chance.choices(WORDS, k=max(5, int(chance.lognormvariate(4.6, 0.8)))))
            completion = " ".join(chance.choices(WORDS, k=max(5, int(chance.lognormvariate(5.0, 0.8)))))
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
    ray.init(num_cpus=cores, include_dashboard=False, object_store_memory=300 * MIB, log_to_driver=False)
    try:
        with Watched() as watched:
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
