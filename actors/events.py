"""What a run tells the outside: events in numbered segments, and the latest progress in one small file."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

from actors.live_view import LiveView
from proxykd.errors import IntegrityError
from proxykd.storage import RunDirectory, create_if_absent, delete, is_remote, read_json, write_atomic

PROGRESS_EVERY_S = 0.5
PROGRESS_EVERY_REMOTE_S = 10.0
"""In an object store every write is a request that is paid for."""
BEAT_S = 5.0
LOST_AFTER_S = 60.0


class EventLog:
    """Writes events/000001.jsonl, 000002.jsonl, ...: one segment an emission, since object stores cannot append.

    What it writes goes to the live view too, where there is one.
    """

    def __init__(self, run: RunDirectory, view: LiveView | None = None):
        self._run = run
        self._view = view
        self._lock = threading.RLock()
        self._segment = max((int(p.stem) for p in run.events.glob("*.jsonl") if p.stem.isdigit()), default=0)
        self._left = read_live(run)
        self._state: dict[str, Any] = {}
        self._standing: dict[str, bool] = {}
        self._every_s = PROGRESS_EVERY_REMOTE_S if is_remote(run.root) else PROGRESS_EVERY_S
        self._written = 0.0
        self._began = time.monotonic()
        self._earlier_s = 0.0
        self._closed = False

    def wake(self) -> None:
        """The first sign of life: what the last coordinator left, as of now."""
        left = {key: value for key, value in self._left.items() if key != "ended"}
        write_atomic(self._run.live, json.dumps({**left, "time": time.time()}, default=str).encode())

    def emit(self, event: str, **facts: Any) -> None:
        with self._lock:
            entry = {"time": time.time(), "event": event, **facts}
            line = (json.dumps(entry, default=str) + "\n").encode()
            self._segment += 1
            while not create_if_absent(self._run.events / f"{self._segment:06d}.jsonl", line):
                self._segment += 1
            if self._view is not None:
                self._view.publish({"segment": self._segment, **entry})

    def stage(self, stage: str, round_number: int | None) -> None:
        """Begins a stage: its progress starts at nothing, its seconds where a coordinator that died left them."""
        with self._lock:
            left, self._left = self._left, {}
            same = (left.get("stage"), left.get("round")) == (stage, round_number)
            self._earlier_s = float(left.get("spent", 0.0)) if same else 0.0
            self._began = time.monotonic()
            self._state = {"stage": stage, "round": round_number, "started": time.time(), "done": 0.0, "total": 0.0}
            self._write()

    @property
    def stage_seconds(self) -> float:
        """Spent on the stage so far, over all attempts (each but the last to within a heartbeat)."""
        return self._earlier_s + time.monotonic() - self._began

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
            if time.monotonic() - self._written > self._every_s or done >= total:
                self._write()

    def beat(self, epoch: int) -> None:
        """A sign of life, every few seconds."""
        with self._lock:
            if self._closed:
                return
            self._write()
            if self._view is not None:
                self._view.hold_lease(epoch)

    def end_stage(self) -> None:
        with self._lock:
            self._state = {}
            self._write()

    def close(self) -> None:
        """The coordinator ends: nothing is live any more. What a stage in hand has cost so far is kept."""
        with self._lock:
            self._closed, self._standing = True, {}
            if self._state:
                self._write(ended=True)
            else:
                delete(self._run.live)

    def _write(self, ended: bool = False) -> None:
        self._written = time.monotonic()
        state = {**self._standing, **self._state, "time": time.time()}
        state |= {"spent": self.stage_seconds} if self._state else {}
        state |= {"ended": True} if ended else {}
        write_atomic(self._run.live, json.dumps(state, default=str).encode())
        if self._view is not None:
            self._view.show(state)


def read_live(run: RunDirectory) -> dict[str, Any]:
    """The latest progress: `stage` and how far it is, with what stands across stages. Empty where nothing was at work.

    `ended` marks what the last coordinator left in hand.
    """
    try:
        live: dict[str, Any] = read_json(run.live)
    except (FileNotFoundError, IntegrityError):  # torn by a fault of the disk: it is only a view
        return {}
    return live


def gives_signs_of_life(run: RunDirectory) -> bool:
    """Whether a coordinator wrote within the last minute, by the clocks of both machines."""
    live = read_live(run)
    return bool(live) and not live.get("ended") and abs(time.time() - live["time"]) < LOST_AFTER_S


def read_events(directory: Path, after: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Events of the segments after number `after`, and the number of the last one."""
    events, last = [], after
    for path in sorted(p for p in directory.glob("*.jsonl") if p.stem.isdigit() and int(p.stem) > after):
        try:
            events += [json.loads(line) for line in path.read_text().splitlines()]
        except json.JSONDecodeError:
            events.append({"time": time.time(), "event": "warning", "message": f"{path} is torn; its event is lost"})
        last = int(path.stem)
    return events, last
