"""The next round's samples, begun while the trainers still look at the round before.

A round's samples wait for the adapter that they are drawn from: for the last step of the round before, the pass over
the validation slice that promotes or rejects it, and the saving. They do not wait for what follows: the pairs once
more, the inspected ones, the task's answers, and the end of the workers.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from actors.run.context import Context
from actors.run.round_samples import sampler, shards_of_round
from actors.telemetry.event_types import SampledAhead, Warned
from proxykd.config import RunConfig
from proxykd.evaluation.promotion import decide
from proxykd.evaluation.validation_scores import is_judged, validation_change
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import delete, unfinished, write_atomic

POLL_S = 1.0


@contextmanager
def sampling_ahead(context: Context, number: int, reference: str) -> Iterator[None]:
    """Within it the round `number` trains from `reference`. On leaving, the shards in hand are finished; the next round
    makes the rest, and makes anew what a rejection has left without use."""
    if not (context.proxy_is_up and _pays(context.config, number)):
        yield
        return
    enough = context.run.round(number + 1) / "enough"
    delete(enough)
    trained = threading.Event()
    with ThreadPoolExecutor(1) as thread:
        ahead = thread.submit(_sample, context, number, reference, trained, enough)
        try:
            yield
        finally:
            trained.set()
            write_atomic(enough, b"")
            _tell(context, number + 1, ahead)
            delete(enough)


def _pays(config: RunConfig, number: int) -> bool:
    """Another round may follow, on records that are known, and the engine has devices of its own."""
    resources, alignment = config.resources, config.alignment
    apart = resources.device == "gpu" or resources.pools.engine != resources.pools.trainer
    another = number < alignment.rounds and not config.corpus.follow
    return another and alignment.preference and apart and resources.engine_while_training == "keep"


def _sample(context: Context, number: int, reference: str, trained: threading.Event, enough: Path) -> float:
    """Returns the seconds from the adapter's appearance on; 0 where it came too late, or is rejected."""
    run, config = context.run, context.config.alignment
    earlier = _saved(run, number)
    while not (new := _saved(run, number) - earlier):
        if trained.wait(POLL_S):
            return 0.0
    [adapter] = new
    if config.task is None and decide(validation_change(run, reference, adapter)).verdict == "reject":
        return 0.0
    began = time.monotonic()
    with context.proxy_beside(adapter) as call:
        shards = shards_of_round(context, number + 1)
        context.shards_beside.pairs(shards, sampler(context, number + 1, call), config, enough)
    return time.monotonic() - began


def _saved(run: RunDirectory, number: int) -> set[str]:
    """The round's adapters whose validation scores are there."""
    ready = (path.name for path in run.ready_directories(run.adapters))
    return {name for name in ready if name.startswith(f"r{number:02d}-") and is_judged(run, name)}


def _tell(context: Context, number: int, ahead: Future[float]) -> None:
    """What was lost is only time: the round that follows asks again, and says why where it cannot."""
    try:
        seconds = ahead.result()
    except Exception as error:
        context.events.emit(Warned(f"round {number} was not sampled ahead: {error}"))
        return
    if seconds:
        shards = shards_of_round(context, number)
        made = sum(not unfinished(path) for path in shards)
        context.events.emit(SampledAhead(number, made, len(shards), seconds))
