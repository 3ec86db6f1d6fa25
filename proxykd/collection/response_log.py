"""Every answer that was paid for, on storage before anything else happens to it.

JSONL segments that are only added to, one of each process: a line a request sent, a line its outcome. On a file system
a line is one write, which no SIGKILL undoes; an object store cannot append, so that there a line is an object. A torn
last line (a full disk, a machine that lost power) is no line.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from proxykd.collection.budget import Usage
from proxykd.runs.storage import is_remote

Line = dict[str, Any]
InFlight = defaultdict[str, list[Usage]]


@dataclass(frozen=True)
class Place:
    """Where a line lies, so that a data set larger than memory needs only this of each answer."""

    path: Path
    offset: int
    length: int

    def read(self) -> Line:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            line: Line = json.loads(file.read(self.length))
        return line


@dataclass
class Kept:
    """What earlier processes have left: where each answer lies, what was refused for good, and what all that cost."""

    replies: dict[str, Place] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    estimated: int = 0
    """Answers whose tokens the provider did not tell."""
    models: list[str] = field(default_factory=list)
    """In the order in which they answered."""
    usage: Usage = field(default_factory=Usage)
    unanswered: Usage = field(default_factory=Usage)

    def add_model(self, name: str) -> None:
        if name not in self.models:
            self.models.append(name)


class ResponseLog:
    """One process's segment in `folder`, and the reading of all."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:6]}"
        self._lines = count()
        self._file: int | None = None

    def sent(self, key: str, worst: Usage) -> None:
        """Notes a request before it goes out: should this process die, its cost is not forgotten."""
        self._append({"sent": key, "prompt": worst.prompt, "completion": worst.completion})

    def replied(self, key: str, facts: Line) -> Place:
        """Keeps an answer and returns where it lies."""
        return self._append({"reply": key, **facts, "time": time.time()})

    def refused(self, key: str, reason: str) -> None:
        """The provider will never answer this one. It is not sent again."""
        self._append({"refused": key, "reason": reason, "time": time.time()})

    def again(self, key: str) -> None:
        """What came of this one counts no longer: it is to be asked again."""
        self._append({"again": key})

    def free(self, key: str) -> None:
        """What was sent came back without an answer and without a cost (429, 5xx)."""
        self._append({"free": key})

    def lost(self, key: str) -> None:
        """What was sent will never come back; it may have been paid for."""
        self._append({"lost": key})

    def sync(self) -> None:
        """Forces what was written onto the disk itself, against the machine's own death."""
        if self._file is not None:
            os.fdatasync(self._file)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _append(self, line: Line) -> Place:
        data = (json.dumps(line, ensure_ascii=False) + "\n").encode(errors="surrogatepass")
        if is_remote(self._folder):
            path = self._folder / f"{self._name}-{next(self._lines):08d}.jsonl"
            path.write_bytes(data)
            return Place(path, 0, len(data))
        path = self._folder / f"{self._name}.jsonl"
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        offset = os.fstat(self._file).st_size
        written = 0
        try:
            while written < len(data):
                written += os.write(self._file, data[written:])
        except OSError:
            os.ftruncate(self._file, offset)
            raise
        return Place(path, offset, len(data))


def read_log(folder: Path) -> Kept:
    """All segments of all processes so far."""
    kept = Kept()
    in_flight: InFlight = defaultdict(list)
    for path in sorted(folder.glob("*.jsonl")):
        for place, line in _lines(path):
            _apply(kept, in_flight, place, line)
    for usages in in_flight.values():
        kept.unanswered = sum(usages, kept.unanswered)
    return kept


def _lines(path: Path) -> Iterator[tuple[Place, Line]]:
    offset = 0
    with path.open("rb") as file:
        for raw in file:
            if raw.endswith(b"\n"):
                with contextlib.suppress(ValueError):  # a disk's fault: the request is sent again
                    yield Place(path, offset, len(raw)), json.loads(raw)
            offset += len(raw)


def _apply(kept: Kept, in_flight: InFlight, place: Place, line: Line) -> None:
    """Every outcome is that of the latest request of its key: an earlier one was a process's that died."""
    if "sent" in line:
        in_flight[line["sent"]].append(Usage(line["prompt"], line["completion"]))
        return
    if "again" in line:
        kept.replies.pop(line["again"], None)
        kept.refused.pop(line["again"], None)
        return
    kind = next(iter(line))
    sent = in_flight[line[kind]].pop() if in_flight[line[kind]] else Usage()
    if kind == "reply":
        kept.usage += Usage(line["prompt_tokens"], line["completion_tokens"])
        kept.estimated += line.get("estimated", False)
        kept.replies.setdefault(line["reply"], place)
        kept.add_model(line["model"])
    elif kind == "refused":
        kept.refused[line["refused"]] = line["reason"]
    elif kind == "lost":
        kept.unanswered += sent
