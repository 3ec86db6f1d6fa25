"""Structured logs: one JSON object a line, in RUN/logs/<role>-<host>-<pid>.jsonl, of every process at work for a run.

For runs in an object store they lie on the node that wrote them, in ~/.cache/proxykd/logs/<run>.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from typing import Any

from actors.telemetry.event_types import LoggedEvent, RunFailed, StageStarted, Warned
from actors.telemetry.live_state import LiveState
from actors.telemetry.watchers import BaseWatcher
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import cache_folder, is_remote

Facts = dict[str, Any]
PROGRESS_EVERY_S = 30.0
PROGRESS_KEYS = ("stage", "round", "done", "total", "unit", "metrics")
LEVELS = {Warned: logging.WARNING, RunFailed: logging.ERROR}


class JsonLines(logging.Formatter):
    """`stage`, `round` and whatever else a record names by `extra={"facts": {...}}` stand beside its message."""

    def __init__(self, **standing: Any):
        super().__init__()
        self._standing = standing

    def format(self, record: logging.LogRecord) -> str:
        line = {"time": record.created, "level": record.levelname, **self._standing, **getattr(record, "facts", {})}
        line["message"] = record.getMessage()
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_of(run: RunDirectory, role: str) -> logging.Logger:
    """Returns this process' log of a run. A disk that takes no line takes nothing else from the run either."""
    logger = logging.getLogger(f"proxykd.{run.id}.{role}")
    if not logger.handlers:
        folder = cache_folder() / "logs" / run.id if is_remote(run.root) else run.root / "logs"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            name = f"{role}-{socket.gethostname()}-{os.getpid()}.jsonl"
            handler: logging.Handler = logging.FileHandler(folder / name, delay=True)
        except OSError:
            handler = logging.NullHandler()
        handler.setFormatter(JsonLines(run=run.id, role=role))
        handler.handleError = lambda record: None  # type: ignore[method-assign]
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    return logger


class LogOfEvents(BaseWatcher):
    """The coordinator's log: every event, and a stage's progress every half a minute."""

    def __init__(self, run: RunDirectory):
        self._log = log_of(run, "coordinator")
        self._at: Facts = {}
        self._progress_at = time.monotonic()

    def event(self, logged: LoggedEvent) -> None:
        event = logged.event
        if isinstance(event, StageStarted):
            self._at = event.facts()
        facts = {key: value for key, value in logged.stored().items() if key != "time"}
        level = LEVELS.get(type(event), logging.INFO)
        self._log.log(level, event.summary(), extra={"facts": {**self._at, **facts}})

    def progress(self, state: LiveState) -> None:
        if time.monotonic() - self._progress_at < PROGRESS_EVERY_S:
            return
        self._progress_at = time.monotonic()
        self._log.info("progress", extra={"facts": {key: getattr(state, key) for key in PROGRESS_KEYS}})
