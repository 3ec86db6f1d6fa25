"""`make chaos`: every part of a run is killed at every stage; a table says how each death ended.

    python -m tests.chaos.matrix [--folder DIR] [--fresh]

Several deaths share a run, one after the other; an uninterrupted run gives what they must all end with. What is done
is kept in DIR/outcomes.jsonl, so that starting again goes on.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from actors.local_cluster import use_token
from tests.chaos.runs import AttackedRun, Point, check_records, results, write_config

Outcome = dict[str, Any]
SELF_HEALING = ("train worker", "train controller", "coordinator", "valkey")
FATAL = ("gcs", "raylet", "machine")
"""A Ray of one machine does not start these again: the run needs one resume."""

SECOND = "nobody: a second coordinator"

CAMPAIGNS: dict[str, list[tuple[Point, str]]] = {
    "training": [
        (Point(stage, 0.1 + 0.11 * number), victim)
        for stage in ("warmup", "align", "distil")
        for number, victim in enumerate((*SELF_HEALING, *FATAL))
    ]
    + [(Point("evaluate", 0.1 * number), victim) for number, victim in enumerate(("train worker", "coordinator", "machine"))],
    "engine": [
        (Point(stage, 0.05 + 0.12 * number), victim)
        for stage in ("sample", "score")
        for number, victim in enumerate(("data task", "vllm engine", "serve replica", "coordinator", "gcs", "machine"))
    ],
    "two coordinators": [(Point("warmup", 0.3), SECOND), (Point("distil", 0.3), SECOND)],
    "boundaries": [
        (Point(stage, None), victim)
        for stage, victim in (
            ("models", "coordinator"), ("corpus", "machine"), ("warmup", "coordinator"), ("align-01", "machine"),
            ("score", "coordinator"), ("distil", "machine"), ("evaluate", "coordinator"),
        )
    ],
}  # fmt: skip


class Book:
    """The outcomes so far, on disk."""

    def __init__(self, path: Path):
        self._path = path
        self.outcomes: list[Outcome] = []
        if path.exists():
            self.outcomes = [json.loads(line) for line in path.read_text().splitlines()]

    def has(self, campaign: str, point: Point, victim: str) -> bool:
        key = (campaign, str(point), victim)
        return any((o["campaign"], o["point"], o["victim"]) == key for o in self.outcomes)

    def add(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        with self._path.open("a") as file:
            file.write(json.dumps(outcome) + "\n")


def attack(campaign: str, folder: Path, expected: dict[str, str], book: Book, console: Console) -> bool:
    """Runs a campaign's deaths through one run; whether it ended with what the uninterrupted run has."""
    attacked = AttackedRun(write_config(folder, folder / campaign.replace(" ", "-")))
    for point, victim in CAMPAIGNS[campaign]:
        if book.has(campaign, point, victim):
            continue
        outcome: Outcome = {"campaign": campaign, "point": str(point), "victim": victim}
        if attacked.wait(point):
            act = attacked.start_a_second if victim == SECOND else partial(attacked.strike, victim)
            outcome |= act(point)
        else:
            outcome |= {"recovered": "not hit: the stage was over", "seconds": 0.0, "shards": {}}
        book.add(outcome)
        console.print(f"{campaign}: {victim}, {point}: {outcome['recovered']} in {outcome['seconds']} s")
    attacked.finish()
    check_records(attacked.run)
    final = attacked.shards()
    for outcome in book.outcomes:
        if outcome["campaign"] == campaign:
            changed = [name for name, sha in outcome["shards"].items() if final.get(name) != sha]
            assert not changed, f"shards that were finished before {outcome} changed: {changed}"
    return differences(expected, results(attacked.root)) == []


def differences(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    return sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))


def show(book: Book, equal: dict[str, bool], seconds: float, console: Console) -> None:
    table = Table(title=f"{len(book.outcomes)} deaths by SIGKILL, {seconds / 60:.0f} minutes", title_justify="left")
    for column in ("when", "victim", "recovered", "seconds", "end of its run"):
        table.add_column(column, justify="right" if column == "seconds" else "left")
    for outcome in book.outcomes:
        same = equal.get(outcome["campaign"])
        end = {None: "not ended", True: "equal, tensor for tensor", False: "DIFFERS"}[same]
        table.add_row(outcome["point"], outcome["victim"], outcome["recovered"], f"{outcome['seconds']:.0f}", end)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/chaos"))
    parser.add_argument("--fresh", action="store_true", help="forget earlier outcomes")
    parser.add_argument("--campaign", action="append", choices=CAMPAIGNS, help="only this one (default: all)")
    arguments = parser.parse_args()
    use_token()
    folder = arguments.folder.absolute()
    if arguments.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    console = Console(highlight=False, width=120)
    began = time.monotonic()
    console.print("the uninterrupted run ...")
    whole = AttackedRun(write_config(folder, folder / "uninterrupted"))
    whole.finish()
    check_records(whole.run)
    expected = results(whole.root)
    book = Book(folder / "outcomes.jsonl")
    equal = {}
    for campaign in arguments.campaign or CAMPAIGNS:
        equal[campaign] = attack(campaign, folder, expected, book, console)
    show(book, equal, time.monotonic() - began, console)
    sys.exit(0 if all(equal.values()) else 1)


if __name__ == "__main__":
    main()
