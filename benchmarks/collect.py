"""How near to a provider's limit collecting stays, against a real HTTP server that counts, in real minutes.

    PYTHONPATH=. python benchmarks/collect.py [--per-minute 600] [--minutes 4]

All rows run at the same time, each with a server of its own. The limit is named in the config, in the server's headers,
or has to be learned from its 429s; the server refills a bucket, or counts in minutes, fixed or sliding.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from proxykd.collection.job import Collection
from proxykd.config import CollectConfig
from proxykd.text.corpus import read_prompts
from tests.teacher_stub import teacher_stub

CASES = [(known, window) for known in ("config", "headers", "429s") for window in ("bucket", "fixed", "sliding")]


def measure(known: str, window: str, per_minute: int, minutes: int) -> list[str]:
    settings: dict[str, Any] = {"requests_per_minute": per_minute, "window": window, "latency_s": 0.3}
    with tempfile.TemporaryDirectory() as name, teacher_stub(**settings, names_limits=known == "headers") as stub:
        folder = Path(name)
        prompts = folder / "prompts.jsonl"
        rows = ({"prompt": f"What is number {n}?"} for n in range(per_minute * minutes))
        prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
        collection = {"requests_per_minute": per_minute} if known == "config" else {}
        teacher = {"model": "stub-1", "base_url": stub.base_url, "max_tokens": 16}
        config = CollectConfig.model_validate({"teacher": teacher, "collection": collection})
        whole = Collection(folder / "out", config, read_prompts(prompts))
        whole.require_whole(whole.run(stub.base_url, lambda progress: None))
        timeline = [(at, status) for at, status in stub.stats()["timeline"] if at >= 60.0]
    seconds = timeline[-1][0] - 60.0
    kept = sum(status == 200 for _, status in timeline) / (per_minute * seconds / 60.0)
    refused = sum(status == 429 for _, status in timeline) / len(timeline)
    return [known, window, f"{seconds:.0f}", f"{100 * kept:.1f} %", f"{100 * refused:.2f} %"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-minute", type=int, default=600)
    parser.add_argument("--minutes", type=int, default=4)
    arguments = parser.parse_args()
    table = Table(title=f"{arguments.per_minute} requests a minute, after the first minute", title_justify="left")
    for column in ("limit known from", "server counts by", "seconds", "of the limit kept", "429s"):
        table.add_column(column, justify="right" if column in ("seconds", "of the limit kept", "429s") else "left")
    with ThreadPoolExecutor(len(CASES)) as pool:
        rows = pool.map(lambda case: measure(*case, arguments.per_minute, arguments.minutes), CASES)
        for row in rows:
            table.add_row(*row)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
