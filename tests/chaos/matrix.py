"""`make chaos`: every part of a run is killed at every stage; a table says how each death ended.

    python -m tests.chaos.matrix [--folder DIR] [--fresh] [--campaign NAME]...

Several deaths share a run, one after the other; an uninterrupted run gives what they must all end with. What is done
is kept in DIR/outcomes.jsonl, so that starting again goes on.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from actors.hosting.local_cluster import use_token
from tests.chaos.acts import (
    Act,
    Outcome,
    flush_redis,
    kill,
    kill_redis,
    kill_the_driver,
    refuse_writes,
    start_a_second,
)
from tests.chaos.disks import Disk
from tests.chaos.runs import AttackedRun, Point, check_records, results, write_config
from tests.object_store import new_bucket, s3_server, slowed
from tests.redis_servers import own_server, password_in_the_environment

TRAINING = ("train worker", "train controller", "coordinator", "valkey", "gcs", "raylet", "machine")
"""A Ray of one machine does not start its GCS or raylet again: after these three the run needs one resume."""
ENGINE = ("data task", "vllm engine", "serve replica", "coordinator")
S3_LATENCY_S = 0.01
MISSED = "not hit"

Strikes = list[tuple[Point, str, Act]]
Campaign = Callable[[Path], AbstractContextManager[tuple[Path, Strikes]]]
"""Given a folder, holds up what the run stands on and yields its config and what is done to it."""


@contextmanager
def processes(folder: Path) -> Iterator[tuple[Path, Strikes]]:
    """Deaths at every stage's boundary and in the midst of every stage, and a second coordinator."""

    def during(stage: str, *victims: str) -> Strikes:
        return [(Point(stage, 0.05 + 0.11 * i), victim, kill(victim)) for i, victim in enumerate(victims)]

    def after(stage: str, victim: str) -> Strikes:
        return [(Point(stage, None), victim, kill(victim))]

    strikes: Strikes = [
        *after("models", "coordinator"),
        *after("corpus", "coordinator"),
        *during("warmup", *TRAINING),
        (Point("warmup", 0.85), "nobody: a second coordinator", start_a_second),
        *after("warmup", "coordinator"),
        *during("sample", *ENGINE, "machine"),
        *during("align", *TRAINING),
        (Point("align", 0.85), "driver", kill_the_driver),
        *after("align-01", "machine"),
        *during("score", *ENGINE, "gcs"),
        *after("score", "coordinator"),
        *during("distil", *TRAINING),
        *after("distil", "machine"),
        *during("evaluate", "train worker", "coordinator"),
    ]
    yield write_config("processes", folder, folder / "processes"), strikes


@contextmanager
def disks(folder: Path) -> Iterator[tuple[Path, Strikes]]:
    """Storage that is full, storage that turns read-only, and a Redis of one's own that dies or is emptied."""
    disk = Disk(folder / "disk")
    full = refuse_writes(disk, disk.fill, disk.free, "disk at ")
    broken = refuse_writes(disk, disk.break_, disk.mend, "cannot be written")
    try:
        with password_in_the_environment(), own_server(folder) as server:
            strikes: Strikes = [
                (Point("warmup", 0.2), "Redis of one's own", kill_redis(server)),
                (Point("warmup", 0.6), "full disk", full),
                (Point("sample", 0.2), "full disk", full),
                (Point("align", 0.2), "FLUSHALL", flush_redis(server)),
                (Point("align", 0.4), "read-only disk", broken),
                (Point("score", 0.2), "read-only disk", broken),
                (Point("distil", 0.3), "full disk", full),
            ]
            yield write_config("disks", folder, disk.folder / "runs", redis_url=server.url), strikes
    finally:
        disk.unmount()


@contextmanager
def slow_object_store(folder: Path) -> Iterator[tuple[Path, Strikes]]:
    """A run that lies in S3 whole, every request of which takes its time."""
    with s3_server() as url, slowed(url, S3_LATENCY_S):
        config = write_config("slow-s3", folder, f"{new_bucket()}/runs", checkpoint_seconds=20.0)
        yield (
            config,
            [
                (Point("warmup", 0.5), "coordinator", kill("coordinator")),
                (Point("score", 0.3), "machine", kill("machine")),
            ],
        )


CAMPAIGNS: dict[str, Campaign] = {"processes": processes, "disks": disks, "slow S3": slow_object_store}
ENDS_WITH_US = "slow S3"
"""Its server is a thread of this process: cut off, it begins anew."""


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

    def forget(self, campaign: str) -> None:
        kept = [outcome for outcome in self.outcomes if outcome["campaign"] != campaign]
        self.outcomes = []
        self._path.write_text("")
        for outcome in kept:
            self.add(outcome)

    def add(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        with self._path.open("a") as file:
            file.write(json.dumps(outcome) + "\n")


def attack(campaign: str, folder: Path, expected: dict[str, str], book: Book, console: Console) -> bool:
    """Runs a campaign's deaths through one run; whether it ended with what the uninterrupted run has."""
    if campaign == ENDS_WITH_US:
        book.forget(campaign)
    with CAMPAIGNS[campaign](folder) as (config, strikes):
        attacked = AttackedRun(config)
        for point, victim, act in strikes:
            if book.has(campaign, point, victim):
                continue
            outcome: Outcome = {"campaign": campaign, "point": str(point), "victim": victim}
            if attacked.wait(point):
                outcome |= {"shards": attacked.shards()} | act(attacked, point)
            else:
                outcome |= {"recovered": f"{MISSED}: the stage was over", "seconds": 0.0, "shards": {}}
            book.add(outcome)
            console.print(f"{campaign}: {victim}, {point}: {outcome['recovered']} in {outcome['seconds']:.1f} s")
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
    hit = sum(not outcome["recovered"].startswith(MISSED) for outcome in book.outcomes)
    table = Table(title=f"{hit} of {len(book.outcomes)} faults hit, {seconds / 60:.0f} minutes", title_justify="left")
    for column in ("campaign", "when", "victim", "recovered", "seconds", "end of its run"):
        table.add_column(column, justify="right" if column == "seconds" else "left")
    for outcome in book.outcomes:
        same = equal.get(outcome["campaign"])
        end = {None: "not ended", True: "equal, tensor for tensor", False: "DIFFERS"}[same]
        cells = (outcome["campaign"], outcome["point"], outcome["victim"], outcome["recovered"])
        table.add_row(*cells, f"{outcome['seconds']:.0f}", end)
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
    console = Console(highlight=False, width=140)
    began = time.monotonic()
    console.print("the uninterrupted run ...")
    whole = AttackedRun(write_config("uninterrupted", folder, folder / "uninterrupted"))
    whole.finish()
    check_records(whole.run)
    expected = results(whole.root)
    book = Book(folder / "outcomes.jsonl")
    equal = {}
    for campaign in arguments.campaign or CAMPAIGNS:
        equal[campaign] = attack(campaign, folder, expected, book, console)
    show(book, equal, time.monotonic() - began, console)
    missed = any(outcome["recovered"].startswith(MISSED) for outcome in book.outcomes)
    sys.exit(0 if all(equal.values()) and not missed else 1)


if __name__ == "__main__":
    main()
