"""Ray Train runs: a training stage, or several, fed by Ray Data streams that every worker sees whole and in order."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray.train
from ray.data import Dataset, ExecutionOptions
from ray.train import DataConfig, FailureConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from actors.cluster.placement import in_pool
from actors.training.train_loops import run_loops
from proxykd.config import ResourceConfig

MAX_FAILURES = 16
"""Deaths of workers in one stage before the run fails."""


@dataclass(frozen=True)
class TrainTask:
    """One stage's loop with its facts (train_loops.Worker reads them), and the rows that it streams."""

    facts: dict[str, Any]
    stream: Dataset | None


def train(name: str, tasks: Sequence[TrainTask], resources: ResourceConfig) -> None:
    """Runs the tasks one after the other on one group of workers, and returns when all have.

    Raises:
        ray.train.TrainingFailedError: the workers died more often than is retried.
    """
    options = ExecutionOptions(preserve_order=True)
    # Ray Train's own book-keeping; what a stage makes goes to the run directory.
    scratch = tempfile.mkdtemp(prefix="proxykd-train-")
    named = {f"stream-{number}": task for number, task in enumerate(tasks)}
    trainer = TorchTrainer(
        run_loops,
        train_loop_config={"tasks": [{**task.facts, "stream": stream} for stream, task in named.items()]},
        scaling_config=ScalingConfig(
            num_workers=resources.trainer_workers,
            use_gpu=resources.device == "gpu",
            **in_pool(resources.pools.trainer),
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=scratch,
            # A worker group that is started again goes on from the stage's checkpoint.
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
        ),
        datasets={stream: task.stream for stream, task in named.items() if task.stream is not None},
        dataset_config=DataConfig(datasets_to_split=[], execution_options=options),
    )
    try:
        trainer.fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
