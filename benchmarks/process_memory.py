"""What the processes of a Ray hold, each for itself alone, by what they are, sampled over time."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import psutil

EVERY_S = 0.5
WORK = ("BlockWriter", "BucketWriter", "Retokeniser", "feed_engine")
"""What a run's tasks are named by (actors/data/spreading.py)."""
ROLES = {
    **{f"ray::{name}": "worker" for name in WORK},
    "ray::_made": "reader",
    "ray::Coordinator": "coordinator",
    "ray::RayTrainWorker": "trainer",
    "ray::ServeReplica": "replica",
    "VLLM::": "engine",
    "ray::": "Ray's own",
}
"""Of the processes whose command begins so, the first that fits; others by the name of their program."""
OTHERS = {"raylet": "raylet", "gcs_server": "gcs", "proxykd": "driver"}


class Watched:
    """The largest process of each role, in MiB, sampled while it is entered: this process is the driver, and all that
    began since belong to it. Memory that several map together, such as Ray's object store, is nobody's."""

    def __init__(self, driver: bool = True) -> None:
        self.samples: list[tuple[float, dict[str, float]]] = []
        self._driver = driver
        self._over = threading.Event()

    def __enter__(self) -> Watched:
        self._began, self._since = time.monotonic(), time.time()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(EVERY_S):
            self.samples.append((time.monotonic() - self._began, self._largest()))

    def _largest(self) -> dict[str, float]:
        found: dict[str, float] = defaultdict(float)
        own = psutil.Process().pid
        for process in psutil.process_iter():
            try:
                if process.pid == own:
                    role = "driver" if self._driver else None
                else:
                    role = _role(process.cmdline()) if process.create_time() >= self._since else None
                if role is not None:
                    status = Path(f"/proc/{process.pid}/status").read_text()
                    mib = int(status.partition("RssAnon:")[2].split()[0]) / 1024
                    found[role] = max(found[role], mib)
            except (OSError, psutil.Error, IndexError):
                continue  # it has ended
        return dict(found)

    def peak(self, role: str) -> float:
        """MiB of the largest process of a role."""
        return max((sample.get(role, 0.0) for _, sample in self.samples), default=0.0)


def _role(command: list[str]) -> str | None:
    """What a process is, None where it is none of ours."""
    for start, role in ROLES.items():
        if command[0].startswith(start):
            return role
    programs = {Path(word).name for word in command[:3]}
    return next((role for name, role in OTHERS.items() if name in programs), None)
