"""All stages, in the order of a run; and what derives from that: which a config has, keys, finished markers."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel

from proxykd.config import EngineConfig, RunConfig
from proxykd.errors import IntegrityError
from proxykd.runs.journal import replay
from proxykd.runs.run_directory import RunDirectory, stage_key
from proxykd.stages.align import ALIGN
from proxykd.stages.answer import ANSWER
from proxykd.stages.assist import ASSIST
from proxykd.stages.collect import COLLECT
from proxykd.stages.complete import COMPLETE
from proxykd.stages.corpus import CORPUS
from proxykd.stages.distil import DISTIL
from proxykd.stages.evaluate import EVALUATE
from proxykd.stages.models import MODELS
from proxykd.stages.on_policy import ON_POLICY
from proxykd.stages.retokenise import RETOKENISE
from proxykd.stages.score import SCORE
from proxykd.stages.sft import SFT
from proxykd.stages.stage import Finished, Stage
from proxykd.stages.warmup import WARMUP

STAGES: tuple[Stage[Any], ...] = (
    MODELS, COLLECT, CORPUS, WARMUP, ALIGN, SCORE, ANSWER, RETOKENISE, COMPLETE, ASSIST, DISTIL, ON_POLICY, SFT,
    EVALUATE,
)  # fmt: skip


def stage_named(name: str) -> Stage[Any]:
    """Returns the stage of this name.

    Raises:
        IntegrityError: this version of the code has none.
    """
    for stage in STAGES:
        if stage.name == name:
            return stage
    raise IntegrityError(
        f"a journal names the stage {name!r}, which this version of proxykd does not have: read the run with the one "
        f"that made it, or begin anew with --fresh"
    )


def stages_of(config: RunConfig) -> list[Stage[Any]]:
    """Those that a run of this config has, in order."""
    return [stage for stage in STAGES if stage.when(config)]


def expected(config: RunConfig) -> list[tuple[Stage[Any], int | None]]:
    """Every stage, round by round, that the run may come to; rounds may end earlier."""
    return [(stage, number) for stage in STAGES for number in stage.numbers(config)]


def stage_keys(config: RunConfig) -> dict[str, str]:
    """Returns, by stage that another run may take over, a hash of all its result depends on (a round's number aside).

    Runs with equal keys make equal results, so that one may take over the other's. (The teacher is asked once for all
    seeds: they share its text.)
    """
    keys: dict[str, str] = {}
    for stage in stages_of(config):
        if stage.settings is not None:
            inputs = [keys[name] for name in stage.inputs if name in keys]
            parts = json.dumps(
                [inputs, [_plain(value) for value in stage.settings(config)]], sort_keys=True, default=str
            )
            keys[stage.name] = hashlib.sha256(parts.encode()).hexdigest()[:16]
    return keys


def finished_stages(run: RunDirectory) -> list[Finished[Any]]:
    """The markers of all that is done, in the order in which they began, by the journal: clocks jump."""
    began: dict[str, tuple[str, int | None]] = {}
    for entry in replay(run.journal):
        if entry["event"] == "STAGE_STARTED":
            began.setdefault(stage_key(entry["stage"], entry["round"]), (entry["stage"], entry["round"]))
    found = (stage_named(name).finished(run, number) for name, number in began.values())
    return [stage for stage in found if stage is not None]


def _plain(value: Any) -> Any:
    """JSON-ready. How adapters get into the engine follows the device, and no result depends on it."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude={"adapters"} if isinstance(value, EngineConfig) else None)
    return value
