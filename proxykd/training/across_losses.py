"""What a student with a tokenizer of its own minimises: equation (11), with the labels by bytes.

The mathematics is in losses/cross_tokenizer.py. Rows add to those of DistillationLoss what data/retokenised.py has of
them: `proxy_ids`, `proxy_at`, `chunks`, `images`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from proxykd.config import DistillationConfig
from proxykd.data.soft_labels import as_top_k
from proxykd.losses.cross_tokenizer import NONE, AlignedTopK, aligned_kl, aligned_labels, sorted_distance
from proxykd.losses.top_k import moved
from proxykd.models.batching import CompletionBatch
from proxykd.models.scorer import CompletionScorer
from proxykd.text.corpus import Row
from proxykd.training.stage_losses import DistillationLoss


class AlignedDistillationLoss(DistillationLoss):
    """At tokens that are one to one the KL with tail on the labels' images; at spans of several the binary
    divergence."""

    def __init__(self, global_batch: Sequence[Row], config: DistillationConfig):
        super().__init__(global_batch, config)
        self._temperature = config.span_temperature

    def _scores(self, scorer: CompletionScorer, batch: CompletionBatch, rows: list[Row]) -> tuple[Tensor, Tensor]:
        target = _aligned(rows, batch)
        scores = scorer(batch, target.top.ids_NK)
        assert scores.top is not None
        return scores.token_logps_N, aligned_kl(target, scores.token_logps_N, scores.top, self._temperature)


class SortedDistillationLoss(DistillationLoss):
    """Universal logit distillation, at the tokens that are one to one: the distance of both sides' sorted
    probabilities. Which K tokens are the student's likeliest is found in a pass of its own."""

    def _scores(self, scorer: CompletionScorer, batch: CompletionBatch, rows: list[Row]) -> tuple[Tensor, Tensor]:
        labels, device = as_top_k([row["soft_labels"] for row in rows]), batch.labels_N.device
        likeliest = scorer.score(batch, labels.ids_NK.shape[1]).top
        assert likeliest is not None
        scores = scorer(batch, likeliest.ids_NK)
        assert scores.top is not None
        at_N = torch.from_numpy(_joined(rows, "proxy_at", "proxy_ids"))
        alone_N = at_N != NONE
        proxy, student = labels.at(at_N[alone_N]).to(device), scores.top.at(alone_N.to(device))
        values_N = torch.zeros_like(scores.token_logps_N)
        return scores.token_logps_N, values_N.masked_scatter(alone_N.to(device), sorted_distance(proxy, student))


ACROSS = {"aligned": AlignedDistillationLoss, "uld": SortedDistillationLoss}
"""By `distillation.across`."""


def _aligned(rows: Sequence[Row], batch: CompletionBatch) -> AlignedTopK:
    """The labels of a micro-batch's rows, one behind the other, made where the labels lie and then moved."""
    labels = as_top_k([row["soft_labels"] for row in rows])
    top_k = labels.ids_NK.shape[1]
    images_NK = np.concatenate([np.frombuffer(row["images"], "<i4").reshape(-1, top_k) for row in rows])
    ours, theirs = (_starts(rows, key) for key in ("proxy_ids", "completion_ids"))
    chunks = [
        np.asarray(row["chunks"], np.int64).reshape(-1, 4) + np.array([our, 0, their, 0])
        for row, our, their in zip(rows, ours, theirs, strict=False)
    ]
    target = aligned_labels(
        labels,
        torch.tensor([one for row in rows for one in row["proxy_ids"]]),
        torch.from_numpy(np.concatenate([row["soft_labels"].token_logps_T for row in rows])),
        batch.labels_N.cpu(),
        torch.from_numpy(_joined(rows, "proxy_at", "proxy_ids")),
        torch.from_numpy(images_NK.astype(np.int64)),
        torch.from_numpy(np.concatenate(chunks)),
    )
    device = batch.labels_N.device
    there = {name: moved(value, device) for name, value in vars(target).items() if name != "top"}
    return replace(target, top=target.top.to(device), **there)


def _joined(rows: Sequence[Row], key: str, of: str) -> np.ndarray:
    """The rows' places among tokens `of` their own as places among those of all rows, one behind the other."""
    found = []
    for row, start in zip(rows, _starts(rows, of), strict=False):
        places = np.asarray(row[key], np.int64)
        found.append(np.where(places == NONE, NONE, places + start))
    return np.concatenate(found)


def _starts(rows: Sequence[Row], key: str) -> list[int]:
    return list(accumulate((len(row[key]) for row in rows), initial=0))
