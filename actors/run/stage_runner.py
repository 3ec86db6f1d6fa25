"""Stages are done once: each leaves a marker with its result and cost, and is skipped where that stands."""

from __future__ import annotations

import os
import time

from actors.run.context import Context
from actors.run.imports import imported
from actors.telemetry.event_types import StageAdopted, StageFinished, StageStarted
from proxykd.runs.checkpoints import Checkpoints
from proxykd.runs.journal import Entry
from proxykd.runs.run_directory import RunDirectory, stage_key
from proxykd.stages.stage import Finished, Made, R, Stage
from proxykd.study.adoption import adopt_stage


def run_once(context: Context, stage: Stage[R], number: int | None = None) -> R:
    """The stage's result: kept, taken over from another run that has made the very same, or made now.

    Raises:
        RunStoppedError: somebody asked the run to stop before it began.
    """
    if (kept := stage.finished(context.run, number)) is not None:
        return kept.result
    context.run.go_on()
    with context.facilities.sharing.turn(context.run, stage_key(stage.name, number)) as donor:
        return _adopt(context, donor, stage, number) if donor else _make(context, stage, number)


def why_it_ends(context: Context, stage: Stage[R], rounds: int) -> str | None:
    """Why a stage in rounds ends after so many, or None where another one follows."""
    assert stage.ended is not None
    reason: str | None = imported(stage.ended)(context, rounds)
    return reason


def _make(context: Context, stage: Stage[R], number: int | None) -> R:
    name, events = stage.name, context.events
    context.journal.append("STAGE_STARTED", stage=name, round=number)
    events.stage(name, number)
    events.emit(StageStarted(name, number))
    started, context.busy_s = time.time(), 0.0
    made: Made[R] = imported(stage.body)(context, number)
    seconds = events.stage_seconds
    context.journal.check()
    finished: Finished[R] = Finished[stage.result](  # type: ignore[name-defined]
        stage=name,
        round=number,
        seconds=seconds,
        busy_seconds=context.busy_s or seconds,
        started_at=started,
        attempts=sum(1 for entry in context.journal.entries if _started(entry, name, number)),
        records=made.records,
        tokens=made.tokens,
        devices=_devices(context),
        result=made.result,
    )
    stage.write(context.run, finished)
    context.journal.append("STAGE_FINISHED", stage=name, round=number)
    Checkpoints(context.run.checkpoints / finished.key).clear()
    events.end_stage(finished)
    events.emit(StageFinished(name, number, seconds, finished.busy_seconds, made.result.headline()))
    return made.result


def _adopt(context: Context, donor: RunDirectory, stage: Stage[R], number: int | None) -> R:
    context.journal.append("STAGE_STARTED", stage=stage.name, round=number, adopted_from=donor.id)
    result = adopt_stage(context.run, donor, stage, number)
    context.journal.append("STAGE_FINISHED", stage=stage.name, round=number)
    context.events.emit(StageAdopted(stage.name, number, donor.id))
    return result


def _devices(context: Context) -> int:
    resources = context.config.resources
    return resources.trainer_workers if resources.device == "gpu" else len(os.sched_getaffinity(0))


def _started(entry: Entry, stage: str, number: int | None) -> bool:
    return (entry["event"], entry.get("stage"), entry.get("round")) == ("STAGE_STARTED", stage, number)
