"""What a run tells the outside: events in numbered segments, and the latest progress in one small file."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from actors.telemetry.live_view import LiveView
from actors.telemetry.watchers import Watcher, Watchers
from proxykd.errors import IntegrityError
from proxykd.runs.storage import RunDirectory, create_if_absent, delete, is_remote, read_json, write_atomic

PROGRESS_EVERY_S = 0.5
PROGRESS_EVERY_REMOTE_S = 10.0
"""In an object store every write is a request that is paid for."""
BEAT_S = 5.0
LOST_AFTER_S = 60.0


class History:
    """What a step has reported so far, thinned: at most MOST points, evenly over the whole."""

    MOST = 240

    def __init__(self) -> None:
        self.points: list[dict[str, float]] = []
        self._every, self._reports = 1, 0

    def add(self, done: float, metrics: dict[str, float]) -> None:
        if self._reports % self._every == 0:
            self.points.append({"done": done, **metrics})
        self._reports += 1
        if len(self.points) > self.MOST:
            self.points, self._every = self.points[::2], 2 * self._every


class EventLog:
    """Writes events/000001.jsonl, 000002.jsonl, ...: one segment an emission, since object stores cannot append.

    What it writes goes to the live view too, where there is one, and the watchers are told of it.
    """

    def __init__(self, run: RunDirectory, view: LiveView | None = None):
        self._run = run
        self._view = view
        self._watchers = Watchers([], self._warn)
        self._lock = threading.RLock()
        self._segment = last_segment(run.events)
        self._left = read_live(run)
        self._state: dict[str, Any] = {}
        self._standing: dict[str, bool] = {}
        self._every_s = PROGRESS_EVERY_REMOTE_S if is_remote(run.root) else PROGRESS_EVERY_S
        self._written = 0.0
        self._began = time.monotonic()
        self._earlier_s = 0.0
        self._closed = False
        self._history = History()

    def watch(self, starts: Sequence[Callable[[], Watcher]]) -> None:
        """Starts those who are told of everything from now on."""
        self._watchers = Watchers(starts, self._warn)

    def _warn(self, message: str) -> None:
        self.emit("warning", message=message)

    def wake(self) -> None:
        """The first sign of life: which stage the last coordinator left and what it had cost, not how far it was."""
        left = {key: value for key, value in self._left.items() if key in ("stage", "round", "spent")}
        write_atomic(self._run.live, json.dumps({**left, "time": time.time()}, default=str).encode())

    def emit(self, event: str, **facts: Any) -> None:
        with self._lock:
            entry = {"time": time.time(), "event": event, **facts}
            line = (json.dumps(entry, default=str) + "\n").encode()
            self._segment += 1
            while not create_if_absent(_segment(self._run.events, self._segment), line):
                self._segment += 1
            if self._view is not None:
                self._view.publish({"segment": self._segment, **entry})
            self._watchers.event(entry)

    def stage(self, stage: str, round_number: int | None) -> None:
        """Begins a stage: its progress starts at nothing, its seconds where a coordinator that died left them."""
        with self._lock:
            left, self._left = self._left, {}
            same = (left.get("stage"), left.get("round")) == (stage, round_number)
            self._earlier_s = float(left.get("spent", 0.0)) if same else 0.0
            self._began, self._history = time.monotonic(), History()
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
            self._history = History()
            self._state |= {"step": name, "step_started": time.time(), "done": 0.0, "total": 0.0, "metrics": {}}
            self._write()

    def progress(self, done: float, total: float, unit: str, metrics: dict[str, Any], add: bool = False) -> None:
        with self._lock:
            if not self._state:  # a report that arrives after its stage has ended
                return
            if self._state.get("unit") != unit:
                self._state |= {"step_started": time.time(), "done": 0.0}
                self._history = History()
            done = self._state.get("done", 0.0) + done if add else done
            if metrics:
                self._history.add(done, metrics)
            self._state |= {"done": done, "total": total, "unit": unit, "metrics": metrics}
            self._watchers.progress(self._state)
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

    def end_stage(self, marker: dict[str, Any]) -> None:
        """The stage in hand has left its marker."""
        with self._lock:
            self._state = {}
            self._watchers.result(marker["stage"], marker["round"], marker)
            self._write()

    def close(self) -> None:
        """The coordinator ends: nothing is live any more. What a stage in hand has cost so far is kept."""
        self._watchers.close()  # who may have a last warning to give
        with self._lock:
            self._closed, self._standing = True, {}
            if self._state:
                self._write(ended=True)
            else:
                delete(self._run.live)

    def _write(self, ended: bool = False) -> None:
        self._written = time.monotonic()
        state = {**self._standing, **self._state, "time": time.time()}
        state |= {"spent": self.stage_seconds, "history": self._history.points} if self._state else {}
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
    return is_sign_of_life(read_live(run))


def is_sign_of_life(live: dict[str, Any]) -> bool:
    return bool(live) and not live.get("ended") and abs(time.time() - live["time"]) < LOST_AFTER_S


def read_events(directory: Path, after: int = 0, most: int | None = None) -> tuple[list[dict[str, Any]], int]:
    """Events of the segments after number `after`, `most` at most, and the number of the last one read.

    Each event carries its `segment`. Segments have no gaps, so that nothing lists a directory of many thousands.
    """
    events: list[dict[str, Any]] = []
    last = after
    while (most is None or last - after < most) and (path := _segment(directory, last + 1)).exists():
        last += 1
        events += _read_segment(path, last)
    return events, last


def last_segment(directory: Path) -> int:
    """The number of the newest segment, 0 where there is none: found by doubling and halving."""
    low, high = 0, 1
    while _segment(directory, high).exists():
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _segment(directory, middle).exists() else (low, middle)
    return low


def events_before(directory: Path, before: int | None, most: int) -> list[dict[str, Any]]:
    """The last `most` events before segment `before` (None: of all), oldest first."""
    end = last_segment(directory) + 1 if before is None else before
    first = max(1, end - most)
    return read_events(directory, first - 1, end - first)[0]


def _segment(directory: Path, number: int) -> Path:
    return directory / f"{number:06d}.jsonl"


def _read_segment(path: Path, number: int) -> list[dict[str, Any]]:
    try:
        return [{"segment": number, **json.loads(line)} for line in path.read_text().splitlines()]
    except json.JSONDecodeError:
        message = f"{path} is torn; its event is lost"
        return [{"segment": number, "time": time.time(), "event": "warning", "message": message}]
