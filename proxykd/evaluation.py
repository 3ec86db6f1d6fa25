"""Fidelity: how closely a model follows the teacher on held-out text. And, where a seal may be opened, the true KL."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from proxykd.batching import CompletionBatch, collate, plan_micro_batches, share_of_worker
from proxykd.losses import dense_kl, sequence_sums
from proxykd.parallel import Workers
from proxykd.scorer import CompletionScorer
from proxykd.training import Row


@dataclass(frozen=True)
class RecordScores:
    """Per record, in the order of the rows: completion tokens, summed NLL (nats) and top-1 agreements."""

    tokens: list[int]
    nll: list[float]
    agreements: list[float]

    def fidelity(self) -> dict[str, float | int]:
        """F of DESIGN.md, section 9: mean NLL a token with its standard error (records as clusters), and agreement."""
        mean, stderr = ratio_of_sums(self.nll, self.tokens)
        return {
            "held_out_nll": mean,
            "stderr": stderr,
            "top1_agreement": ratio_of_sums(self.agreements, self.tokens)[0],
            "records": len(self.tokens),
            "tokens": sum(self.tokens),
        }


def ratio_of_sums(values: Sequence[float], tokens: Sequence[int]) -> tuple[float, float]:
    """sum(values) / sum(tokens) and its standard error by linearisation, each record one cluster."""
    total = sum(tokens)
    if total == 0:
        raise ValueError("no held-out token to evaluate on; enlarge corpus.split.validation and corpus.split.test")
    mean = sum(values) / total
    n = len(values)
    spread = sum((v - mean * t) ** 2 for v, t in zip(values, tokens, strict=True))
    return mean, math.sqrt(spread * n / max(1, n - 1)) / total


def score_records(
    scorer: CompletionScorer, rows: Sequence[Row], workers: Workers, micro_batch_tokens: int
) -> RecordScores:
    """Scores every row's completion; the rows are shared out over the workers and gathered on each."""
    plan = plan_micro_batches([row["length"] for row in rows], micro_batch_tokens)
    table = torch.zeros(len(rows), 2, dtype=torch.float64, device=workers.device)
    for part in share_of_worker(plan, workers.rank, workers.world):
        if not part:
            if workers.mode == "fsdp2":  # the collectives of a forward pass need every worker
                scorer.score(_collate(rows, plan[0], workers.device))
            continue
        batch = _collate(rows, part, workers.device)
        scores = scorer.score(batch)
        assert scores.argmax_N is not None
        columns = (-scores.token_logps_N, (scores.argmax_N == batch.labels_N))
        table[part] = torch.stack([sequence_sums(c.double(), batch.rows_N, batch.rows) for c in columns], dim=1)
    nll, agreements = workers.sum(table).T.tolist()
    return RecordScores([len(row["completion_ids"]) for row in rows], nll, agreements)


def true_kl(
    teacher: CompletionScorer, model: CompletionScorer, rows: Sequence[Row], micro_batch_tokens: int
) -> list[float]:
    """Sum over each record's completion tokens of the full-vocabulary KL(teacher || model), in nats.

    Only for evaluation where the teacher is local: nothing in training may see it.
    """
    sums = [0.0] * len(rows)
    for part in plan_micro_batches([row["length"] for row in rows], micro_batch_tokens):
        batch = _collate(rows, part, next(model.parameters()).device)
        kl_N = torch.cat(_kl_chunks(teacher, model, batch))
        for index, value in zip(part, sequence_sums(kl_N, batch.rows_N, batch.rows).tolist(), strict=True):
            sums[index] = value
    return sums


@torch.no_grad()
def _kl_chunks(teacher: CompletionScorer, model: CompletionScorer, batch: CompletionBatch) -> list[Tensor]:
    theirs, ours = teacher.hidden(batch), model.hidden(batch)
    return [
        dense_kl(teacher.logits(theirs[part]), model.logits(ours[part])).double() for part in model.chunks(len(ours))
    ]


def mass_shares(
    scorer: CompletionScorer, rows: Sequence[Row], micro_batch_tokens: int, top_k: int = 50
) -> dict[str, Any]:
    """Figure 5: for k = 1..top_k, the share of tokens whose k most likely tokens hold more than 0.95 of the mass."""
    above = torch.zeros(top_k, dtype=torch.float64)
    tokens = 0
    for part in plan_micro_batches([row["length"] for row in rows], micro_batch_tokens):
        scores = scorer.score(_collate(rows, part, next(scorer.parameters()).device), top_k)
        assert scores.top is not None
        mass_NK = scores.top.logps_NK.double().exp().cumsum(-1).cpu()
        above[: mass_NK.shape[1]] += (mass_NK > 0.95).sum(0)
        tokens += len(mass_NK)
    return {"k": list(range(1, top_k + 1)), "share": (above / max(tokens, 1)).tolist()}


def _collate(rows: Sequence[Row], part: list[int], device: torch.device) -> CompletionBatch:
    return collate([rows[i]["prompt_ids"] for i in part], [rows[i]["completion_ids"] for i in part]).to(device)


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Rank correlation with mean ranks for ties; None where one side is constant or there are fewer than 3."""
    import pandas as pd

    if len(a) < 3:
        return None
    ranks_a, ranks_b = pd.Series(a).rank(), pd.Series(b).rank()
    value = ranks_a.corr(ranks_b)
    return None if math.isnan(value) else float(value)
