"""Experiment trackers: TensorBoard files in the run directory by default, Weights & Biases and MLflow by config."""

from __future__ import annotations

import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from actors.telemetry.live_state import LiveState
from actors.telemetry.watchers import BaseWatcher, Watcher
from proxykd.config import RunConfig
from proxykd.runs.local_folder import local_folder
from proxykd.runs.run_directory import RunDirectory, stage_key
from proxykd.runs.storage import is_remote, write_atomic
from proxykd.stages.stage import Finished

FLUSH_S = 2
"""Seconds until a value is on the disk: what a killed coordinator loses, and what a viewer waits for."""


class Tracker(BaseWatcher, ABC):
    """Logs every measure of every step, and each finished stage's milestones."""

    @abstractmethod
    def log(self, name: str, step: int, value: float) -> None:
        """Logs one value of one measure."""

    def progress(self, state: LiveState) -> None:
        key = stage_key(str(state.stage), state.round)
        for measure, value in (state.metrics or {}).items():
            self.log(f"{key}/{measure}", int(state.done), value)

    def result(self, finished: Finished[Any]) -> None:
        for name, at, value in finished.milestones():
            self.log(name, at, value)


class TensorBoard(Tracker):
    """RUN/tensorboard. For a run in an object store the files grow on this node and are copied at each stage's end."""

    def __init__(self, run: RunDirectory, _: RunConfig):
        from tensorboardX import SummaryWriter

        self._target = run.root / "tensorboard"
        self._remote = is_remote(run.root)
        self._folder = Path(tempfile.mkdtemp(prefix="proxykd-tensorboard-")) if self._remote else self._target
        self._writer: Any = SummaryWriter(str(self._folder), flush_secs=FLUSH_S)

    def log(self, name: str, step: int, value: float) -> None:
        self._writer.add_scalar(name, value, step)

    def result(self, finished: Finished[Any]) -> None:
        super().result(finished)
        self._writer.flush()
        for path in self._folder.glob("events.*") if self._remote else ():
            write_atomic(self._target / path.name, path.read_bytes())

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases(Tracker):
    """A run of the same name, which a resumed run goes on with. Key, host, mode and folder (else RUN/wandb) by
    W&B's own environment.
    """

    def __init__(self, run: RunDirectory, config: RunConfig):
        import wandb

        self._run: Any = wandb.init(
            project=config.tracking.project,
            id=run.id,
            name=run.id,
            resume="allow",
            reinit="create_new",  # a study's runs share this process
            dir=os.environ.get("WANDB_DIR") or str(local_folder(run.root)),
            config=config.model_dump(mode="json"),
            settings=wandb.Settings(console="off"),
        )
        self._axes: set[str] = set()

    def log(self, name: str, step: int, value: float) -> None:
        axis = f"{name.rpartition('/')[0]}/at"
        if name not in self._axes:
            self._run.define_metric(name, step_metric=axis)
            self._axes.add(name)
        self._run.log({name: value, axis: step})

    def close(self) -> None:
        self._run.finish()


class MLflow(Tracker):
    """A run of the same name in the config's experiment. Server and credentials by MLflow's own environment."""

    def __init__(self, run: RunDirectory, config: RunConfig):
        from mlflow import MlflowClient

        self._client: Any = MlflowClient()
        experiment = self._client.get_experiment_by_name(config.tracking.project)
        experiment_id = (
            experiment.experiment_id if experiment else self._client.create_experiment(config.tracking.project)
        )
        earlier = self._client.search_runs([experiment_id], f"tags.proxykd_run = '{run.id}'", max_results=1)
        tags = {"proxykd_run": run.id, "config_sha256": config.sha256}
        made = earlier[0] if earlier else self._client.create_run(experiment_id, run_name=run.id, tags=tags)
        self._id: str = made.info.run_id

    def log(self, name: str, step: int, value: float) -> None:
        self._client.log_metric(self._id, name, value, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._id)


KNOWN: dict[str, Callable[[RunDirectory, RunConfig], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}


def trackers(run: RunDirectory, config: RunConfig) -> list[Callable[[], Watcher]]:
    """Returns what starts each tracker that the config names."""
    return [partial(KNOWN[name], run, config) for name in config.tracking.trackers]
