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

from actors.local_cluster import use_token
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

SELF_HEALING = ("train worker", "train controller", "coordinator", "valkey")
FATAL = ("gcs", "raylet", "machine")
"""A Ray of one machine does not start these again: the run needs one resume."""
ENGINE = ("data task", "vllm engine", "serve replica", "coordinator", "gcs", "machine")
S3_LATENCY_S = 0.03

Strikes = list[tuple[Point, str, Act]]
Campaign = Callable[[Path], AbstractContextManager[tuple[Path, Strikes]]]
"""Given a folder, holds up what the run stands on and yields its config and what is done to it."""


@contextmanager
def training(folder: Path) -> Iterator[tuple[Path, Strikes]]:
    """Deaths while Ray Train works, and a second coordinator in the midst of it."""
    strikes: Strikes = [
        (Point(stage, 0.1 + 0.11 * number), victim, kill(victim))
        for stage in ("warmup", "align", "distil")
        for number, victim in enumerate((*SELF_HEALING, *FATAL))
    ]
    strikes.insert(len(SELF_HEALING + FATAL), (Point("warmup", 0.85), "nobody: a second coordinator", start_a_second))
    strikes.insert(len(SELF_HEALING), (Point("warmup", 0.5), "driver", kill_the_driver))
    strikes += [
        (Point("evaluate", 0.1 * number), victim, kill(victim))
        for number, victim in enumerate(("train worker", "coordinator", "machine"))
    ]
    yield write_config("training", folder, folder / "training"), strikes


@contextmanager
def engine(folder: Path) -> Iterator[tuple[Path, Strikes]]:
    """Deaths while the engine samples and scores."""
    yield (
        write_config("engine", folder, folder / "engine"),
        [
            (Point(stage, 0.05 + 0.12 * number), victim, kill(victim))
            for stage in ("sample", "score")
            for number, victim in enumerate(ENGINE)
        ],
    )


@contextmanager
def boundaries(folder: Path) -> Iterator[tuple[Path, Strikes]]:
    """Deaths between stages, on a Redis of one's own, which dies too."""
    between = (
        ("models", "coordinator"), ("corpus", "machine"), ("warmup", "coordinator"), ("align-01", "machine"),
        ("score", "coordinator"), ("distil", "machine"), ("evaluate", "coordinator"),
    )  # fmt: skip
    with password_in_the_environment(), own_server(folder) as server:
        strikes: Strikes = [(Point(stage, None), victim, kill(victim)) for stage, victim in between]
        strikes.insert(2, (Point("warmup", 0.3), "Redis of one's own", kill_redis(server)))
        strikes.insert(4, (Point("align", 0.3), "FLUSHALL", flush_redis(server)))
        yield write_config("boundaries", folder, folder / "boundaries", redis_url=server.url), strikes


@contextmanager
def disks(folder: Path) -> Iterator[tuple[Path, Strikes]]:
    """Storage that is full, and storage that turns read-only."""
    disk = Disk(folder / "disk")
    full = refuse_writes(disk, disk.fill, disk.free, "disk at ")
    broken = refuse_writes(disk, disk.break_, disk.mend, "cannot be written")
    strikes: Strikes = [
        (Point("warmup", 0.3), "full disk", full),
        (Point("sample", 0.2), "full disk", full),
        (Point("align", 0.3), "read-only disk", broken),
        (Point("score", 0.2), "read-only disk", broken),
        (Point("distil", 0.3), "full disk", full),
    ]
    try:
        yield write_config("disks", folder, disk.folder / "runs"), strikes
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


CAMPAIGNS: dict[str, Campaign] = {
    "training": training,
    "engine": engine,
    "boundaries": boundaries,
    "disks": disks,
    "slow S3": slow_object_store,
}


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
    with CAMPAIGNS[campaign](folder) as (config, strikes):
        attacked = AttackedRun(config)
        for point, victim, act in strikes:
            if book.has(campaign, point, victim):
                continue
            outcome: Outcome = {"campaign": campaign, "point": str(point), "victim": victim}
            if attacked.wait(point):
                outcome |= {"shards": attacked.shards()} | act(attacked, point)
            else:
                outcome |= {"recovered": "not hit: the stage was over", "seconds": 0.0, "shards": {}}
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
    hit = sum(not outcome["recovered"].startswith("not hit") for outcome in book.outcomes)
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
    sys.exit(0 if all(equal.values()) else 1)


if __name__ == "__main__":
    main()
