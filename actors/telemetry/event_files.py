"""The log of events on disk: events/000001.jsonl, 000002.jsonl, ..., one segment an event, without gaps.

Object stores cannot append, and a directory of many thousands is listed by nobody: readers try the next number.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from actors.telemetry.event_types import Entry, LoggedEvent, Warned
from proxykd.runs.storage import create_if_absent


def write_event(directory: Path, logged: LoggedEvent) -> bool:
    """Writes one segment; returns False, with nothing written, where that number is taken."""
    line = json.dumps(logged.stored(), default=str) + "\n"
    return create_if_absent(_segment(directory, logged.segment), line.encode())


def read_entries(directory: Path, after: int = 0, most: int | None = None) -> tuple[list[Entry], int]:
    """Returns the entries of the segments after number `after`, `most` at most, each with its `segment`; and the number
    of the last one read."""
    entries: list[Entry] = []
    last = after
    while (most is None or last - after < most) and (path := _segment(directory, last + 1)).exists():
        last += 1
        entries += _read_segment(path, last)
    return entries, last


def entries_before(directory: Path, before: int | None, most: int) -> list[Entry]:
    """Returns the last `most` entries before segment `before` (None: of all), oldest first."""
    end = last_segment(directory) + 1 if before is None else before
    first = max(1, end - most)
    return read_entries(directory, first - 1, end - first)[0]


def read_events(directory: Path, after: int = 0) -> tuple[list[LoggedEvent], int]:
    """Returns the events of the segments after number `after`, and the number of the last one read."""
    entries, last = read_entries(directory, after)
    return _typed(entries), last


def latest_events(directory: Path, most: int) -> list[LoggedEvent]:
    """Returns the last `most` events, oldest first."""
    return _typed(entries_before(directory, None, most))


def last_segment(directory: Path) -> int:
    """Returns the number of the newest segment, 0 where there is none: found by doubling and halving."""
    low, high = 0, 1
    while _segment(directory, high).exists():
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _segment(directory, middle).exists() else (low, middle)
    return low


def _typed(entries: list[Entry]) -> list[LoggedEvent]:
    return [LoggedEvent.from_entry(entry["segment"], entry) for entry in entries]


def _segment(directory: Path, number: int) -> Path:
    return directory / f"{number:06d}.jsonl"


def _read_segment(path: Path, number: int) -> list[Entry]:
    try:
        return [{"segment": number, **json.loads(line)} for line in path.read_text().splitlines()]
    except json.JSONDecodeError:
        return [LoggedEvent(number, time.time(), Warned(f"{path} is torn; its event is lost")).entry()]
