"""One round, equations (3) to (6): NLL + DPO against the adapter that it starts from; or, an ablation, NLL alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from proxykd.config import AlignmentConfig
from proxykd.evaluation.fidelity import RecordScores, pair_token_logps
from proxykd.evaluation.inspection import first_pairs, write_inspected
from proxykd.evaluation.task import Asked
from proxykd.models.batching import collate
from proxykd.models.scorer import CompletionScorer
from proxykd.stages.align import TrainedRound
from proxykd.text.corpus import Row
from proxykd.text.tokenizer import load_tokenizer
from proxykd.training import gates
from proxykd.training.after_round import pairs_after_round
from proxykd.training.asking import Answers, ask
from proxykd.training.resumable import ResumableTraining
from proxykd.training.saving import save_answers, save_proxy
from proxykd.training.stage_losses import AlignmentLoss, SftLoss, put_references, reference_logps, with_references
from proxykd.training.trainer import Step
from proxykd.training.worker import Worker


@dataclass(frozen=True)
class Parity:
    """A few completions with the engine's log-probs of their tokens, one completion after the other."""

    prompts: list[list[int]]
    completions: list[list[int]]
    logps: list[float]


@dataclass(frozen=True)
class RoundTask:
    """`records` are the round's pairs, or without the preference loss its records; `reference` is an adapter."""

    round: int
    reference: str
    records: int
    learning_rate: float
    parity: Parity | None = None
    """With the preference loss."""
    task: Sequence[Asked] = ()


def align(worker: Worker, task: RoundTask) -> TrainedRound:
    """Reference log-probs and parity first, then the steps, the validation slice and the saving, then a look at the
    pairs and the task."""
    config = _gentle(worker.config.alignment, task)
    scorer = worker.proxy(task.reference)
    training = ResumableTraining(worker, scorer, config, task.records)
    notes, budget = training.notes, worker.config.resources.micro_batch_tokens
    pairs = first_pairs(worker.run, task.round)
    if notes.get("arithmetic") != (arithmetic := worker.arithmetic()):
        began = time.monotonic()
        notes["references"], notes["parity"] = _reference_pass(worker, task, scorer, training)
        notes["arithmetic"] = arithmetic
        notes["reference_seconds"] = time.monotonic() - began + notes.get("reference_seconds", 0.0)
        notes["before"] = pair_token_logps(scorer, pairs, worker.workers, budget)
        training.save()

    def step(rows: list[Row]) -> Step:
        rows = with_references(rows, notes["references"])
        loss = AlignmentLoss(rows, config, config.teacher_kl)

        def gate(losses: dict[str, float], _: dict[str, float]) -> None:
            largest = float(worker.workers.max(loss.largest_margin.to(worker.workers.device)))
            notes["step0"] = {"step0_margin_max_abs": largest, "step0_dpo_loss": losses["dpo"]}
            gates.check_step0(largest, losses["dpo"])

        return training.trainer.step(rows, loss, gate if "step0" not in notes else None)

    steps = training.run(step)
    validation = training.validation()
    adapter = _save(worker, scorer, task, validation)  # the next round's samples can begin
    began = time.monotonic()
    judged = pairs_after_round(worker, scorer, training)
    after = pair_token_logps(scorer, pairs, worker.workers, budget)
    if worker.lead:
        tokenizer = load_tokenizer(worker.run.models / "proxy")
        write_inspected(worker.run, task.round, pairs, notes["before"], after, tokenizer)
    judged_seconds = time.monotonic() - began
    answers = ask(worker, scorer, task.task)
    save_answers(worker, adapter, answers.grades)
    measured = [step for step in steps if step.grad_norms]
    return TrainedRound(
        **notes["step0"],
        **notes["parity"],
        adapter=adapter,
        validation=validation.fidelity(),
        task=answers.score,
        nll_loss=fmean(step.losses["nll"] for step in steps),
        dpo_loss=fmean(step.losses["dpo"] for step in steps),
        teacher_kl_loss=fmean(step.losses["teacher_kl"] for step in steps) if config.teacher_kl else None,
        nll_grad_norm=fmean(step.grad_norms["nll"] for step in measured),
        dpo_grad_norm=fmean(step.grad_norms["dpo"] for step in measured),
        dpo_accuracy=sum(step.metrics["correct"] for step in steps) / training.records_seen,
        margin_mean=sum(step.metrics["margin"] for step in steps) / training.records_seen,
        dpo_accuracy_after=judged.accuracy,
        margin_mean_after=judged.margin_mean,
        pairs_after=judged.pairs,
        seconds={
            "reference": notes["reference_seconds"],
            "train": training.seconds,
            "after": judged_seconds,
            "evaluate": training.validation_seconds,
            **_asking(answers),
        },
        **training.facts(),
    )


def align_nll(worker: Worker, task: RoundTask) -> TrainedRound:
    """NLL alone on the round's records."""
    config = _gentle(worker.config.alignment, task)
    scorer = worker.proxy(task.reference)
    training = ResumableTraining(worker, scorer, config, task.records)
    by_sequence = config.nll_reduction == "sequence_sum"
    steps = training.run(lambda rows: training.trainer.step(rows, SftLoss(rows, by_sequence)))
    validation = training.validation()
    adapter = _save(worker, scorer, task, validation)
    answers = ask(worker, scorer, task.task)
    save_answers(worker, adapter, answers.grades)
    return TrainedRound(
        adapter=adapter,
        validation=validation.fidelity(),
        task=answers.score,
        nll_loss=fmean(step.losses["nll"] for step in steps),
        seconds={"train": training.seconds, "evaluate": training.validation_seconds, **_asking(answers)},
        **training.facts(),
    )


def _save(worker: Worker, scorer: CompletionScorer, task: RoundTask, validation: RecordScores) -> str:
    return save_proxy(worker, scorer, f"r{task.round:02d}", task.round, task.reference, validation)


def _asking(answers: Answers) -> dict[str, float]:
    return {"ask": answers.seconds} if answers.grades else {}


def _gentle(config: AlignmentConfig, task: RoundTask) -> AlignmentConfig:
    """The config of this round: at its own rate."""
    return config.model_copy(update={"learning_rate": task.learning_rate})


@torch.no_grad()
def _reference_pass(
    worker: Worker, task: RoundTask, scorer: CompletionScorer, training: ResumableTraining
) -> tuple[Tensor, dict[str, float]]:
    """Reference sequence log-probs of all pairs, [N, 2], on exactly training's micro-batches; and the parity of engine
    and trainer.

    The reference is the policy before its first step, or before it takes up a checkpoint: the same weights in the same
    place, no second copy.
    """
    assert task.parity is not None
    references_N2 = torch.zeros(task.records, 2, dtype=torch.float64, device=worker.workers.device)
    steps = training.total_steps // worker.config.alignment.epochs
    for number, rows in enumerate(training.first_epoch(), start=1):
        for part, weight in training.trainer.micro_batches(rows):
            if weight:
                put_references(references_N2, scorer, part)
            else:
                reference_logps(scorer, part)
        worker.progress(number, steps, "reference batches")
    ours: list[float] = []
    for prompt, completion in zip(task.parity.prompts, task.parity.completions, strict=True):
        batch = collate([prompt], [completion]).to(worker.workers.device)
        ours += scorer.score(batch).token_logps_N.tolist()
    mean_abs, max_abs = worker.workers.of_lead(gates.parity(task.parity.logps, ours))
    gates.check_parity(mean_abs, max_abs, worker.config.parity_threshold, task.reference)
    return worker.workers.sum(references_N2).cpu(), {"parity_mean_abs": mean_abs, "parity_max_abs": max_abs}
