"""Equations (3) to (6): rounds of on-policy DPO, each against the last promoted proxy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from proxykd.config import RunConfig
from proxykd.costs.demands import Demand, ProcessDemands
from proxykd.costs.estimator import Estimator, StageEstimate
from proxykd.evaluation.measures import TaskChange, ValidationChange
from proxykd.runs.run_directory import RunDirectory
from proxykd.stages.stage import Milestone, Stage
from proxykd.stages.trained import AdapterResult, adapter_files

MILESTONES = (
    "nll_loss", "dpo_loss", "dpo_accuracy", "margin_mean", "dpo_accuracy_after", "margin_mean_after", "parity_mean_abs",
    "pairs", "truncated",
)  # fmt: skip


class TrainedRound(AdapterResult):
    """What the trainers say of a round. Without the preference loss, all that is of pairs is None."""

    nll_loss: float
    seconds: dict[str, float]
    """By step."""
    dpo_loss: float | None = None
    teacher_kl_loss: float | None = None
    nll_grad_norm: float | None = None
    dpo_grad_norm: float | None = None
    dpo_accuracy: float | None = None
    """The mean over the round's steps, the first among them, where every margin is 0."""
    margin_mean: float | None = None
    dpo_accuracy_after: float | None = None
    """Of the round's pairs once it is over."""
    margin_mean_after: float | None = None
    pairs_after: int | None = None
    step0_margin_max_abs: float | None = None
    step0_dpo_loss: float | None = None
    parity_mean_abs: float | None = None
    """Between the engine's log-probs and the trainer's, nats a token."""
    parity_max_abs: float | None = None


class RoundResult(TrainedRound):
    round: int
    learning_rate: float
    """The round's own, at its largest: below the config's after a rejection."""
    reference_adapter: str
    pairs: int
    """Or records, without the preference loss."""
    dropped: dict[str, int]
    samples: int | None = None
    truncated: int | None = None
    """Samples that ended by length."""
    decision: Literal["promote", "reject"]
    reason: str
    validation_change: ValidationChange
    task_change: TaskChange | None = None
    """What decided, where the run has a task."""

    def headline(self) -> dict[str, Any]:
        first = {"adapter": self.adapter, "decision": self.decision, "pairs": self.pairs}
        others = {"truncated": self.truncated, "dpo_accuracy_after": self.dpo_accuracy_after}
        return first | {name: value for name, value in others.items() if value is not None} | super().headline()

    def milestones(self) -> Iterator[Milestone]:
        yield from self.proxy_milestones(self.round)
        for name in MILESTONES:
            if (value := getattr(self, name)) is not None:
                yield f"round/{name}", self.round, float(value)


def in_force(warmup: str, rounds: Iterable[RoundResult]) -> list[str]:
    """The proxy's adapter after the warm-up, and after each of the rounds in turn: a rejected one leaves the one
    before."""
    adapters = [warmup]
    for outcome in rounds:
        adapters.append(outcome.adapter if outcome.decision == "promote" else adapters[-1])
    return adapters


def _files(run: RunDirectory, result: RoundResult) -> list[Path]:
    return [*adapter_files(run, result), run.round(result.round)]


def _demands(processes: ProcessDemands) -> list[list[Demand]]:
    config = processes.config
    training = [processes.trainer("proxy", config.proxy), processes.readers, *processes.kept_engine]
    sampling = [[processes.engine("proxy"), processes.feeders]] if config.alignment.preference else []
    return [training, *sampling]


def _cost(by: Estimator) -> list[StageEstimate]:
    """All rounds: sampling and the engine's starts; then the reference's log-probs, training on both sides of each
    pair behind one prompt, the validation slice, and the task's questions."""
    stage, rounds = by.config.alignment, by.config.alignment.rounds
    if not rounds:
        return []
    found, sides = [], by.text.pair if stage.preference else 1
    if stage.preference:
        starts = rounds if by.config.resources.engine_while_training == "stop" else 1
        found.append(by.sampled("sample", by.proxy, by.pairs, starts, rounds))
    references = sides * by.pairs if stage.preference else 0
    seconds = by.forward(by.proxy, references + stage.evaluations * by.validation)
    seconds += by.training(by.config.proxy, stage, sides * by.pairs) + by.asking()
    records = rounds * by.pairs * stage.epochs * (2 if stage.preference else 1)
    return [*found, by.trained("align", records, rounds * seconds, rounds, stage.preference)]


def _rounds(config: RunConfig) -> int:
    return config.alignment.rounds


ALIGN = Stage(
    "align",
    "actors.run.alignment:align",
    RoundResult,
    when=lambda config: config.teaching.aligned,
    rounds=_rounds,
    ended="actors.run.alignment:why_it_ends",
    inputs=("warmup",),
    settings=lambda config: [config.alignment, config.engine],
    files=_files,
    demands=_demands,
    cost=_cost,
)
