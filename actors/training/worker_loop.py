"""What Ray Train runs on each worker: the loops of the stages that wait, one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray.train
import torch
from ray import cloudpickle
from ray.exceptions import RayError
from ray.train.torch import get_device

from actors.data.spreading import own
from actors.telemetry.logs import log_of
from actors.telemetry.progress import Progress
from proxykd.errors import ProxykdError, RunStoppedError
from proxykd.models.parallel import Workers
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import location, refusal, write_json
from proxykd.stages.stage import Result
from proxykd.training.worker import Worker


@dataclass(frozen=True)
class LoopCall:
    """One stage's loop to run: where, by what names, and on what. `outcome` is the file that rank 0 writes."""

    run: str
    key: str
    loop: Callable[[Worker, Any], Result]
    task: Any
    outcome: str
    reporter: Callable[[], Progress]
    stream: str | None = None
    """The name of its data set among those of the group."""


def run_loops(config: dict[str, bytes]) -> None:
    """The function that Ray Train runs: the loop of every call, but for those that an earlier attempt has finished.

    Which these are, rank 0 says: what it finishes now, another worker may not have begun. `config` has the calls,
    a list of LoopCall, pickled.
    """
    calls: list[LoopCall] = cloudpickle.loads(config["calls"])
    unfinished_here = [i for i, call in enumerate(calls) if not location(call.outcome).exists()]
    unfinished_calls = Workers.current("ddp", get_device()).of_lead(unfinished_here)
    if all(run_loop(calls[i]) for i in unfinished_calls):
        ray.train.report({})


def run_loop(call: LoopCall) -> bool:
    """One loop. A ProxykdError is a finding, not a crash: it is stored, not retried.

    One that a single worker of several meets would leave the others waiting for it, so that it fails all the same: Ray
    Train starts the workers again, who find the call finished.

    Storage that refuses a write is the coordinator's to know. The worker that met it fails, so that none of the others
    waits for it; Ray Train starts them again, and they leave: False.
    """
    run, report = RunDirectory.open(call.run), call.reporter()
    device = get_device() if run.config().resources.device == "gpu" else torch.device("cpu")
    worker = Worker(run, call.key, device, report, lambda size: _tables(call, size))
    if report.refusal() is not None:
        return False
    began, log = time.monotonic(), log_of(run, "trainer")
    of_round = getattr(call.task, "round", None)
    at = {"key": call.key, "loop": call.loop.__name__, "round": of_round, "rank": worker.workers.rank}
    log.info("begins", extra={"facts": at})
    try:
        try:
            worker.go_on()
            result = call.loop(worker, call.task)
            outcome: dict[str, Any] = {"result": result.model_dump(), "seconds": time.monotonic() - began}
        except ProxykdError as error:
            outcome = {"error": {"type": type(error).__name__, "message": str(error)}}
            if worker.workers.world > 1 and not isinstance(error, RunStoppedError):  # which all of them raise
                write_json(location(call.outcome), outcome)
                raise
        if worker.lead:
            write_json(location(call.outcome), outcome)
        log.info("done", extra={"facts": at | {"seconds": time.monotonic() - began}})
    except Exception as error:
        log.exception("failed", extra={"facts": at})
        if (message := refusal(error, run.root)) is not None:
            report.storage_refused(message)
        raise
    return True


def _tables(call: LoopCall, size: int) -> Iterator[pa.Table]:
    assert call.stream is not None
    shard = ray.train.get_dataset_shard(call.stream)
    try:
        yield from shard.iter_batches(batch_size=size, batch_format="pyarrow")
    except RayError as error:
        raise own(error) from None
