"""A stage that nobody needs, added by one entry and one loop: what tests hold the table to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from proxykd.costs.estimator import StageEstimate
from proxykd.data.corpus_store import read_slice
from proxykd.runs.storage import write_json
from proxykd.stages.stage import Made, Result, Stage
from proxykd.training.worker import Worker


class ToyResult(Result):
    tokens_read: int

    def headline(self) -> dict[str, int]:
        return {"tokens_read": self.tokens_read}

    def milestones(self) -> Any:
        yield "toy/tokens_read", 0, float(self.tokens_read)


@dataclass(frozen=True)
class ToyTask:
    slice: str


def toy_loop(worker: Worker, task: ToyTask) -> ToyResult:
    rows = read_slice(worker.run, task.slice)
    if worker.lead:
        write_json(worker.run.root / "toy" / "seen.json", [row["id"] for row in rows])
    return ToyResult(tokens_read=sum(row["length"] for row in rows))


def do_toy(context: Any, _: int | None) -> Made[ToyResult]:
    result = context.train("toy", toy_loop, ToyTask("validation"))
    return Made(result, records=5, tokens=result.tokens_read)


TOY = Stage(
    "toy",
    "tests.toy_stage:do_toy",
    ToyResult,
    when=lambda config: config.teaching.labels,
    inputs=("corpus",),
    settings=lambda config: [config.corpus.max_length],
    files=lambda run, _: [run.root / "toy"],
    demands=lambda processes: [[processes.trainer("proxy"), processes.readers, processes.readers, processes.readers]],
    cost=lambda by: [StageEstimate("toy", 5, 50.0, 7200.0, 1)],
)
