"""What a round made of its pairs, looked at once more when it is over."""

from __future__ import annotations

from typing import NamedTuple

import torch

from proxykd.models.scorer import CompletionScorer
from proxykd.training.resumable import ResumableTraining
from proxykd.training.stage_losses import AlignmentLoss, with_references
from proxykd.training.worker import Worker

MOST_PAIRS = 1024
"""Of a round, about: beyond, every so many-th global batch. An accuracy is then known within 0.016."""


class PairsAfter(NamedTuple):
    accuracy: float
    margin_mean: float
    """Nats."""
    pairs: int


def pairs_after_round(worker: Worker, scorer: CompletionScorer, training: ResumableTraining) -> PairsAfter:
    """DPO accuracy, mean margin (nats) and number of pairs, by the adapter that the round made, against its reference.

    The running ones are means over the adapters on the way, the round's start among them, by which every margin is 0.
    Whole global batches on training's micro-batches: every worker must call it, and fsdp2's stay in step.
    """
    references, config = training.notes["references"], worker.config.alignment
    batches = training.total_steps // config.epochs
    stride = -(-training.records // MOST_PAIRS)
    sums = torch.zeros(3, dtype=torch.float64, device=worker.workers.device)
    for number, rows in enumerate(training.first_epoch()):
        if number % stride:
            continue
        rows = with_references(rows, references)
        loss = AlignmentLoss(rows, config, config.teacher_kl)
        for part, weight in training.trainer.micro_batches(rows):
            with torch.no_grad():
                _, metrics = loss(scorer, part)
            sums[:2] += weight * torch.stack([metrics["correct"], metrics["margin"]])
            sums[2] += weight * len(part)
        worker.progress(number + 1, batches, "batches after the round")
    correct, margin, pairs = worker.workers.sum(sums).tolist()
    return PairsAfter(correct / pairs, margin / pairs, int(pairs))
