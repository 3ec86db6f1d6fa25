"""The coordinator's side of what a run says of itself: events as they happen, and the progress of the stage in hand."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from actors.telemetry.event_files import last_segment, write_event
from actors.telemetry.event_types import Event, LoggedEvent, Warned
from actors.telemetry.live_state import History, LiveState, read_live
from actors.telemetry.live_view import LiveView
from actors.telemetry.watchers import Watcher, Watchers
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import delete, is_remote, write_atomic
from proxykd.stages.stage import Finished

PROGRESS_EVERY_S = 0.5
PROGRESS_EVERY_REMOTE_S = 10.0
"""In an object store every write is a request that is paid for."""
BEAT_S = 5.0


class EventLog:
    """Writes the run's events and its live state: to storage, to the live view where there is one, to the watchers."""

    def __init__(self, run: RunDirectory, view: LiveView | None = None):
        self._run = run
        self._view = view
        self._watchers = Watchers([], self._warn)
        self._lock = threading.RLock()
        self._segment = last_segment(run.events)
        self._left = read_live(run)
        """Where the last coordinator was, until this one's first stage."""
        self._state = LiveState()
        self._every_s = PROGRESS_EVERY_REMOTE_S if is_remote(run.root) else PROGRESS_EVERY_S
        self._written = 0.0
        self._began = time.monotonic()
        self._earlier_s = 0.0
        self._closed = False
        self._history = History()

    def watch(self, starts: Sequence[Callable[[], Watcher]]) -> None:
        """Starts watchers that hear everything from now on."""
        self._watchers = Watchers(starts, self._warn)

    def _warn(self, message: str) -> None:
        self.emit(Warned(message))

    def wake(self) -> None:
        """The first sign of life: which stage the last coordinator left and what it had cost, not how far it was."""
        left = self._left
        self._store(LiveState(time=time.time(), stage=left.stage, round=left.round, spent=left.spent))

    def emit(self, event: Event, run: str | None = None) -> None:
        """Logs an event; `run` tags one run's in the log of its study.

        Raises:
            OSError: storage does not take it.
        """
        with self._lock:
            logged = LoggedEvent(self._segment + 1, time.time(), event, run)
            while not write_event(self._run.events, logged):
                logged = replace(logged, segment=logged.segment + 1)
            self._segment = logged.segment
            if self._view is not None:
                self._view.publish(logged)
            self._watchers.event(logged)

    def stage(self, stage: str, round_number: int | None) -> None:
        """Begins a stage: its progress starts at nothing, its seconds where a coordinator that died left them."""
        with self._lock:
            left, self._left = self._left, LiveState()
            same = (left.stage, left.round) == (stage, round_number)
            self._earlier_s = left.spent or 0.0 if same else 0.0
            self._began, self._history = time.monotonic(), History()
            self._state = replace(self._between_stages(), stage=stage, round=round_number, started=time.time())
            self._write()

    @property
    def stage_seconds(self) -> float:
        """Spent on the stage so far, over all attempts (each but the last to within a heartbeat)."""
        return self._earlier_s + time.monotonic() - self._began

    def standing(self, engine: bool | None = None, training: bool | None = None) -> None:
        """Notes what holds across stages: the proxy's engine is up, a Ray Train run is at work. None: as it was."""
        with self._lock:
            if engine is not None:
                self._state = replace(self._state, engine=engine)
            if training is not None:
                self._state = replace(self._state, training=training)
            self._write()

    def step(self, name: str) -> None:
        """Begins a step within the stage (sample, train, ...)."""
        with self._lock:
            self._history = History()
            self._state = replace(self._state, step=name, step_started=time.time(), done=0.0, total=0.0, metrics={})
            self._write()

    def progress(self, done: float, total: float, unit: str, metrics: dict[str, Any], add: bool = False) -> None:
        """Notes how far the step is; `add` counts `done` on top of what there is."""
        with self._lock:
            if self._state.stage is None:  # a report that arrives after its stage has ended
                return
            if self._state.unit != unit:
                self._state = replace(self._state, step_started=time.time(), done=0.0)
                self._history = History()
            done = self._state.done + done if add else done
            if metrics:
                self._history.add(done, metrics)
            self._state = replace(self._state, done=done, total=total, unit=unit, metrics=metrics)
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

    def end_stage(self, finished: Finished[Any]) -> None:
        """The stage in hand has left this marker."""
        with self._lock:
            self._state = self._between_stages()
            self._watchers.result(finished)
            self._write()

    def close(self) -> None:
        """The coordinator ends: nothing is live any more. What a stage in hand has cost so far is kept."""
        self._watchers.close()  # who may have a last warning to give
        with self._lock:
            self._closed = True
            self._state = replace(self._state, engine=None, training=None)
            if self._state.stage is not None:
                self._state = replace(self._state, ended=True)
                self._write()
            else:
                delete(self._run.live)

    def _between_stages(self) -> LiveState:
        return LiveState(engine=self._state.engine, training=self._state.training)

    def _write(self) -> None:
        self._written = time.monotonic()
        state = replace(self._state, time=time.time())
        if state.stage is not None:
            state = replace(state, spent=self.stage_seconds, history=self._history.points)
        self._store(state)
        if self._view is not None:
            self._view.show(state)

    def _store(self, state: LiveState) -> None:
        write_atomic(self._run.live, json.dumps(state.to_json(), default=str).encode())
