"""Stages are done once: each leaves a marker with its result and cost, and is skipped where that stands."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from actors.run.workbench import Workbench
from proxykd.runs.checkpoints import Checkpoints
from proxykd.runs.storage import RunDirectory, read_json, stage_key, write_json
from proxykd.study.adoption import adopt

Facts = dict[str, Any]


class StageBook:
    """The stages of one run, as its markers, journal and events have them."""

    def __init__(self, bench: Workbench):
        self._bench = bench

    def once(self, name: str, body: Callable[[], Facts], round_number: int | None = None) -> Facts:
        """The stage's result: kept, taken over from another run that has made the very same, or made now."""
        run, means = self._bench.run, self._bench.means
        marker = run.stages / f"{stage_key(name, round_number)}.json"
        if marker.exists():
            stored: Facts = read_json(marker)["result"]
            return stored
        run.go_on()
        with means.turn(run, name, round_number) as donor:
            return self._adopt(donor, name, round_number) if donor else self._make(name, body, round_number)

    def _make(self, name: str, body: Callable[[], Facts], round_number: int | None) -> Facts:
        bench, key = self._bench, stage_key(name, round_number)
        bench.journal.append("STAGE_STARTED", stage=name, round=round_number)
        bench.events.stage(name, round_number)
        bench.events.emit("stage_started", stage=name, round=round_number)
        started, bench.busy_s = time.time(), 0.0
        result = body()
        seconds = bench.events.stage_seconds
        attempts = sum(1 for entry in bench.journal.entries if _is(entry, "STAGE_STARTED", name, round_number))
        spent = {"seconds": seconds, "busy_seconds": bench.busy_s or seconds}
        facts = {"stage": name, "round": round_number, **spent, "started_at": started, "attempts": attempts}
        bench.journal.check()
        marker = {**facts, **result.pop("cost", {}), "result": result}
        write_json(bench.run.stages / f"{key}.json", marker)
        bench.journal.append("STAGE_FINISHED", stage=name, round=round_number)
        Checkpoints(bench.run.checkpoints / key).clear()
        bench.events.end_stage(marker)
        bench.events.emit("stage_finished", stage=name, round=round_number, **spent, **_headline(result))
        return result

    def _adopt(self, donor: RunDirectory, name: str, round_number: int | None) -> Facts:
        bench = self._bench
        bench.journal.append("STAGE_STARTED", stage=name, round=round_number, adopted_from=donor.id)
        result = adopt(bench.run, donor, name, round_number)
        bench.journal.append("STAGE_FINISHED", stage=name, round=round_number)
        bench.events.emit("stage_adopted", stage=name, round=round_number, donor=donor.id)
        return result


def _is(entry: Facts, event: str, stage: str, round_number: int | None) -> bool:
    return (entry["event"], entry.get("stage"), entry.get("round")) == (event, stage, round_number)


def _headline(result: Facts) -> Facts:
    """The few numbers of a stage's result that are worth a line."""
    facts: Facts = {
        key: result[key]
        for key in ("records", "adapter", "decision", "pairs", "truncated", "dpo_accuracy_after")
        if key in result
    }
    if "validation" in result:
        facts |= {key: result["validation"][key] for key in ("held_out_nll", "top1_agreement")}
    return facts
