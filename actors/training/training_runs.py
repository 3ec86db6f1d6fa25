"""Ray Train runs: a training stage, or several, fed by Ray Data streams that every worker sees whole and in order."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace

import ray.train
from ray import cloudpickle
from ray.data import Dataset, ExecutionOptions
from ray.train import DataConfig, FailureConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from actors.cluster.placement import in_pool
from actors.training.worker_loop import LoopCall, run_loops
from proxykd.config import ResourceConfig

TRAINER_GPU = 0.9
"""What Ray counts of a worker's GPU where an engine sleeps there: too much for a second worker."""
MAX_FAILURES = 16
"""Deaths of workers in one stage before the run fails."""


@dataclass(frozen=True)
class TrainRequest:
    """A loop to run, and the rows that it streams."""

    call: LoopCall
    stream: Dataset | None


def train(name: str, requests: Sequence[TrainRequest], resources: ResourceConfig) -> None:
    """Runs the loops one after the other on one group of workers, and returns when all have.

    Raises:
        ray.train.TrainingFailedError: the workers died more often than is retried.
    """
    options = ExecutionOptions(preserve_order=True)
    # Ray Train's own book-keeping; what a stage makes goes to the run directory.
    scratch = tempfile.mkdtemp(prefix="proxykd-train-")
    named = {f"stream-{number}": request for number, request in enumerate(requests)}
    calls = [replace(request.call, stream=stream) for stream, request in named.items()]
    trainer = TorchTrainer(
        run_loops,
        # Pickled: Ray's controller, which unpacks its configuration, would import what the loops import.
        train_loop_config={"calls": cloudpickle.dumps(calls)},  # type: ignore[no-untyped-call]
        scaling_config=ScalingConfig(
            num_workers=resources.trainer_workers,
            use_gpu=resources.device == "gpu",
            resources_per_worker={"GPU": TRAINER_GPU} if resources.engine_while_training == "sleep" else None,
            **in_pool(resources.pools.trainer),
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=scratch,
            # A worker group that is started again goes on from the stage's checkpoint.
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
        ),
        datasets={stream: request.stream for stream, request in named.items() if request.stream is not None},
        dataset_config=DataConfig(datasets_to_split=[], execution_options=options),
    )
    try:
        trainer.fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
