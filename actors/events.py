"""What a run tells the outside: events in numbered segments, and the latest progress in one small file."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

from proxykd.storage import RunDirectory, read_json, write_atomic

PROGRESS_EVERY_S = 0.5


class EventLog:
    """Writes events/000001.jsonl, 000002.jsonl, ...: one segment an emission, since object stores cannot append."""

    def __init__(self, run: RunDirectory):
        self._run = run
        self._lock = threading.RLock()
        self._segment = max((int(p.stem) for p in run.events.glob("*.jsonl") if p.stem.isdigit()), default=0)
        self._state: dict[str, Any] = {}
        self._standing: dict[str, bool] = {}
        self._written = 0.0

    def emit(self, event: str, **facts: Any) -> None:
        with self._lock:
            self._segment += 1
            line = json.dumps({"time": time.time(), "event": event, **facts}, default=str) + "\n"
            write_atomic(self._run.events / f"{self._segment:06d}.jsonl", line.encode())

    def stage(self, stage: str, round_number: int | None) -> None:
        """Begins a stage: its progress starts at nothing."""
        with self._lock:
            self._state = {"stage": stage, "round": round_number, "started": time.time(), "done": 0.0, "total": 0.0}
            self._write()

    def standing(self, **facts: bool) -> None:
        """What holds across stages: `engine` (the proxy's engine is up), `training` (a Ray Train run is at work)."""
        with self._lock:
            self._standing |= facts
            self._write()

    def step(self, name: str) -> None:
        """Begins a step within the stage (sample, train, ...)."""
        with self._lock:
            self._state |= {"step": name, "step_started": time.time(), "done": 0.0, "total": 0.0, "metrics": {}}
            self._write()

    def progress(self, done: float, total: float, unit: str, metrics: dict[str, Any], add: bool = False) -> None:
        with self._lock:
            if not self._state:  # a report that arrives after its stage has ended
                return
            if self._state.get("unit") != unit:
                self._state |= {"step_started": time.time(), "done": 0.0}
            done = self._state.get("done", 0.0) + done if add else done
            self._state |= {"done": done, "total": total, "unit": unit, "metrics": metrics}
            if time.monotonic() - self._written > PROGRESS_EVERY_S or done >= total:
                self._write()

    def end_stage(self) -> None:
        with self._lock:
            self._state = {}
            self._write()

    def close(self) -> None:
        """The run has ended: nothing is live any more."""
        self._run.live.unlink(missing_ok=True)

    def _write(self) -> None:
        self._written = time.monotonic()
        write_atomic(
            self._run.live, json.dumps({**self._standing, **self._state, "time": time.time()}, default=str).encode()
        )


def read_live(run: RunDirectory) -> dict[str, Any]:
    """The latest progress: `stage` and how far it is, with what stands across stages. Empty where nothing runs."""
    try:
        live: dict[str, Any] = read_json(run.live)
    except FileNotFoundError:
        return {}
    return live


def read_events(directory: Path, after: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Events of the segments after number `after`, and the number of the last one."""
    events, last = [], after
    for path in sorted(p for p in directory.glob("*.jsonl") if p.stem.isdigit() and int(p.stem) > after):
        events += [json.loads(line) for line in path.read_text().splitlines()]
        last = int(path.stem)
    return events, last
