"""The append-only journal of a run, fenced by epochs (docs/design.md, Journal and fencing).

Entry n is the file journal/00000n.json, created only if absent. A coordinator claims the run by appending an
EPOCH_CLAIMED entry with 1 + the highest epoch it replayed; an entry that a lower epoch wrote later is ignored.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from proxykd.errors import StaleEpochError
from proxykd.runs.storage import create_if_absent, read_json

Entry = dict[str, Any]


def replay(directory: Path) -> list[Entry]:
    """All valid entries in order: those whose epoch is the highest seen up to them."""
    return list(_current(read_json(path) for path in _files(directory)))


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.glob("*.json") if not path.name.startswith("."))


def _current(entries: Iterable[Entry]) -> Iterable[Entry]:
    epoch = 0
    for entry in entries:
        if entry["epoch"] >= epoch:
            epoch = entry["epoch"]
            yield entry


class Journal:
    """The writing end, held by exactly one coordinator at a time."""

    def __init__(self, directory: Path, **claimant: Any):
        """Replays `directory` and claims it. Losing the race to another claimant is retried with a higher epoch."""
        self._directory = directory
        self._lock = threading.Lock()
        while True:
            files = _files(directory)
            self.entries = list(_current(read_json(path) for path in files))
            self.epoch = 1 + max((entry["epoch"] for entry in self.entries), default=0)
            self._next = 1 + (int(files[-1].stem) if files else 0)
            if self._create({"event": "EPOCH_CLAIMED", **claimant}):
                return

    def append(self, event: str, **facts: Any) -> Entry:
        """Appends one entry.

        Raises:
            StaleEpochError: another coordinator has claimed the run since; this one must stop writing.
        """
        if not self._create({"event": event, **facts}):
            raise self._stale()
        return self.entries[-1]

    def check(self) -> None:
        """Raises StaleEpochError once another coordinator has claimed the run."""
        with self._lock:  # not between another thread's entry and its number
            stale = (self._directory / f"{self._next:06d}.json").exists()
        if stale:
            raise self._stale()

    def _stale(self) -> StaleEpochError:
        return StaleEpochError(
            f"journal entry {self._next:06d} exists: another coordinator has claimed {self._directory.parent}; "
            f"this one (epoch {self.epoch}) stops"
        )

    def _create(self, facts: Entry) -> bool:
        entry = {"epoch": self.epoch, "time": time.time(), **facts}
        data = json.dumps(entry, indent=1, allow_nan=False).encode()
        with self._lock:
            if not create_if_absent(self._directory / f"{self._next:06d}.json", data):
                return False
            self.entries.append(entry)
            self._next += 1
        return True
