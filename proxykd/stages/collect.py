"""The teacher's completions, asked for."""

from __future__ import annotations

from typing import Any

from proxykd.costs.estimator import Estimator, StageEstimate
from proxykd.models.architecture import require_architecture
from proxykd.stages.stage import Result, Stage


class CollectResult(Result):
    records: int
    summary: dict[str, Any]
    """As collection/job.py concludes it: counts, flags, usage and cost."""

    def headline(self) -> dict[str, Any]:
        return {"records": self.records}


def _cost(by: Estimator) -> list[StageEstimate]:
    """A local teacher's; what a provider takes is its own."""
    if (local := by.config.teacher.local) is None:
        return []
    return [by.sampled("collect", require_architecture(local), by.text.records)]


COLLECT = Stage(
    "collect",
    "actors.run.preparation:collect",
    CollectResult,
    when=lambda config: bool(config.corpus.prompts),
    settings=lambda config: [config.teacher, config.quality, config.corpus.prompts, config.corpus.limit],
    files=lambda run, _: [run.collected],
    demands=lambda processes: [[processes.engine("sealed teacher", 1)]] if processes.config.teacher.local else [],
    cost=_cost,
)
