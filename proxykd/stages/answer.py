"""The aligned proxy's own answers to prompts that the teacher has not answered, and its soft labels on them."""

from __future__ import annotations

from proxykd.costs.demands import Demand, ProcessDemands
from proxykd.costs.estimator import Estimator, StageEstimate
from proxykd.stages.stage import Result, Stage


class AnswerResult(Result):
    adapter: str
    records: int
    tokens: int
    """Of the answers."""
    dropped: dict[str, int]
    """Prompts that were left out, by reason."""

    def headline(self) -> dict[str, int]:
        return {"records": self.records, "tokens": self.tokens}


def _demands(processes: ProcessDemands) -> list[list[Demand]]:
    answering = [processes.engine("proxy"), processes.feeders]
    if processes.config.score.source == "engine":
        return [answering]
    return [answering, [processes.trainer("proxy"), *processes.kept_engine]]


def _cost(by: Estimator) -> list[StageEstimate]:
    answering = by.sampled("answer", by.proxy, by.unlabelled)
    if by.config.score.source == "trainer":
        return [answering, by.trained("answer", by.unlabelled, by.forward(by.proxy, by.unlabelled))]
    return [answering, by.scored("answer", by.proxy, by.unlabelled)]


ANSWER = Stage(
    "answer",
    "actors.run.distillation:answer",
    AnswerResult,
    when=lambda config: config.corpus.unlabelled is not None,
    inputs=("corpus", "align", "score"),
    settings=lambda config: [config.corpus.unlabelled],
    files=lambda run, result: [run.answers(result.adapter)],
    demands=_demands,
    cost=_cost,
)
