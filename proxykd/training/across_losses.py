"""What a student with a tokenizer of its own minimises: equation (11), with the labels by bytes.

The mathematics is in losses/cross_tokenizer.py. Rows add to those of DistillationLoss what data/retokenised.py has of
them: `proxy_ids`, `proxy_at`, `chunks`, `images`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from proxykd.config import DistillationConfig
from proxykd.data.aligned_labels import aligned, joined
from proxykd.data.label_tensors import as_top_k
from proxykd.losses.cross_tokenizer import NONE, aligned_kl, sorted_distance
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
        target = aligned(rows, batch.labels_N)
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
        at_N = torch.from_numpy(joined(rows, "proxy_at", "proxy_ids"))
        alone_N = at_N != NONE
        proxy, student = labels.at(at_N[alone_N]).to(device), scores.top.at(alone_N.to(device))
        values_N = torch.zeros_like(scores.token_logps_N)
        return scores.token_logps_N, values_N.masked_scatter(alone_N.to(device), sorted_distance(proxy, student))


ACROSS = {"aligned": AlignedDistillationLoss, "uld": SortedDistillationLoss}
"""By `distillation.across`."""
