"""Progress from anywhere on the cluster to the coordinator, which writes it where a terminal or a page can see it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray


class Progress:
    """Reports one stage's progress to the coordinator by name. A report is fire-and-forget: no result waits for it."""

    def __init__(self, coordinator: str, namespace: str, run: str):
        self._coordinator = ray.get_actor(coordinator, namespace=namespace)
        self._run = run

    def __call__(self, done: float, total: float, unit: str, **metrics: Any) -> None:
        self._coordinator.progress.remote(self._run, done, total, unit, metrics)

    def add(self, done: float, total: float, unit: str) -> None:
        """Adds to what is done, for tasks that know only their own part."""
        self._coordinator.progress.remote(self._run, done, total, unit, {}, True)

    def storage_refused(self, message: str) -> None:
        """Tells the coordinator that the run's storage takes no more, and returns when it knows."""
        ray.get(self._coordinator.storage_refused.remote(message))

    def refusal(self) -> str | None:
        """Returns why a worker could not write to the run's storage, None while all could."""
        message: Any = ray.get(self._coordinator.refusal.remote())
        return None if message is None else str(message)


@dataclass(frozen=True)
class Reporter:
    """Makes a Progress inside whichever process runs the task."""

    coordinator: str
    namespace: str
    run: str

    def __call__(self) -> Progress:
        return Progress(self.coordinator, self.namespace, self.run)


class Unheard(Progress):
    """That of work beside the stage in hand, which has the one place where progress is shown."""

    def __init__(self) -> None:
        pass

    def __call__(self, done: float, total: float, unit: str, **metrics: Any) -> None:
        pass

    def add(self, done: float, total: float, unit: str) -> None:
        pass
