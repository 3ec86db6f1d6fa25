"""One Ray Train run a training stage, fed by a Ray Data stream that every worker sees whole and in order."""

from __future__ import annotations

import shutil
import tempfile
from typing import Any

import ray.train
from ray.data import Dataset, ExecutionOptions
from ray.train import DataConfig, FailureConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from actors.placement import in_pool
from actors.train_loops import run_loop
from proxykd.config import ResourceConfig

MAX_FAILURES = 16
"""Deaths of workers in one stage before the run fails."""


def train(name: str, task: dict[str, Any], stream: Dataset | None, resources: ResourceConfig) -> None:
    """Runs the loop named in `task` on all workers and returns when all have.

    Raises:
        ray.train.TrainingFailedError: the workers died more often than is retried.
    """
    options = ExecutionOptions(preserve_order=True)
    # Ray Train's own book-keeping; what a stage makes goes to the run directory.
    scratch = tempfile.mkdtemp(prefix="proxykd-train-")
    trainer = TorchTrainer(
        run_loop,
        train_loop_config=task,
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
        datasets={} if stream is None else {"train": stream},
        dataset_config=DataConfig(datasets_to_split=[], execution_options=options),
    )
    try:
        trainer.fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
