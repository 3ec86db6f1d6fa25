"""What each training stage minimises.

Rows are dicts with `prompt_ids`, `completion_ids`, `length` and what the stage adds.

Every class is built for one global batch (all of its rows, on every worker) and called on its micro-batches.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from proxykd.config import DistillationConfig, PreferenceConfig
from proxykd.data.label_tensors import as_top_k
from proxykd.data.teacher_logprobs import TeacherAt, places_known
from proxykd.losses.coarse import coarse_divergence, with_token
from proxykd.losses.divergences import Divergence, Name
from proxykd.losses.sequence_losses import TOP_K_DIVERGENCES, dpo, sequence_sums
from proxykd.losses.top_k import TopK, moved, shifted
from proxykd.models.batching import CompletionBatch, collate, collate_behind
from proxykd.models.scorer import CompletionScorer
from proxykd.text.corpus import Row


def batch_completion_tokens(rows: Sequence[Row]) -> int:
    """Returns how many completion tokens the rows have, at least 1, so that a loss may be divided by it."""
    return max(1, sum(len(row["completion_ids"]) for row in rows))


class SftLoss:
    """Equation (1): -log p(y given x), averaged over the global batch's completion tokens, or over its sequences."""

    terms: tuple[str, ...] = ("nll",)
    metrics: tuple[str, ...] = ()

    def __init__(self, global_batch: Sequence[Row], by_sequence: bool = False):
        self._unit = len(global_batch) if by_sequence else batch_completion_tokens(global_batch)

    def __call__(self, scorer: CompletionScorer, rows: list[Row]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        batch = collate([r["prompt_ids"] for r in rows], [r["completion_ids"] for r in rows]).to(_device(scorer))
        return {"nll": -scorer(batch).token_logps_N.sum() / self._unit}, {}


class AlignmentLoss:
    """Equations (3)-(6): NLL of the chosen completion plus DPO of chosen against rejected.

    Rows add `rejected_ids` and the reference's sequence log-probs, `reference_chosen` and `reference_rejected`. With
    `teacher_kl`, the KL from the teacher's log-probs (`teacher_top`) is added, averaged over the tokens at which they
    are known.
    """

    metrics: tuple[str, ...] = ("correct", "margin")

    def __init__(self, global_batch: Sequence[Row], config: PreferenceConfig, teacher_kl: float = 0.0):
        self.terms: tuple[str, ...] = ("nll", "dpo", *(["teacher_kl"] if teacher_kl else []))
        self._teacher_kl = teacher_kl / max(1, places_known(global_batch))
        self._pairs = len(global_batch)
        self._beta = config.beta
        self.largest_margin = torch.zeros((), dtype=torch.float64)
        """The largest absolute margin that this worker has met, in nats."""
        sums = config.nll_reduction == "sequence_sum"
        self._nll_unit = self._pairs if sums else batch_completion_tokens(global_batch)

    def __call__(self, scorer: CompletionScorer, rows: list[Row]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        (chosen_B, rejected_B), kl = self._scores(scorer, rows)
        anchor_chosen, anchor_rejected = (
            moved(torch.tensor([row[key] for row in rows], dtype=torch.float64), chosen_B.device)
            for key in REFERENCE_KEYS
        )
        losses_B, margin_B = dpo(chosen_B, rejected_B, anchor_chosen, anchor_rejected, self._beta)
        terms = {"nll": -chosen_B.sum() / self._nll_unit, "dpo": losses_B.sum() / self._pairs}
        if kl is not None:
            terms["teacher_kl"] = self._teacher_kl * kl
        margin = margin_B.detach()
        self.largest_margin = torch.maximum(self.largest_margin.to(margin.device), margin.abs().max())
        return terms, {"correct": (margin > 0).sum(), "margin": margin.sum()}

    def _scores(self, scorer: CompletionScorer, rows: list[Row]) -> tuple[tuple[Tensor, Tensor], Tensor | None]:
        if not self._teacher_kl:
            return pair_logps(scorer, rows), None
        sides = [side for row in rows for side in (row, {"completion_ids": row["rejected_ids"]})]
        teacher = TeacherAt(sides, _device(scorer))
        batch = pair_batch(scorer, rows)
        scores = scorer(batch, teacher.top.ids_NK)
        return _by_side(scores.token_logps_N, batch), teacher.kl(scores.top).sum()


REFERENCE_KEYS = ("reference_chosen", "reference_rejected")


def put_references(references_N2: Tensor, scorer: CompletionScorer, rows: list[Row]) -> None:
    """Puts what AlignmentLoss asks of the reference, in the order of REFERENCE_KEYS, where the pairs' `index` is."""
    references_N2[[row["index"] for row in rows]] = torch.stack(reference_logps(scorer, rows), 1)


def reference_logps(scorer: CompletionScorer, rows: list[Row]) -> tuple[Tensor, Tensor]:
    """`pair_logps` without a gradient, to the digit as the loss has them: layers that are compiled for passes with a
    gradient round otherwise without one."""
    with torch.set_grad_enabled(scorer.compiled):
        chosen_B, rejected_B = pair_logps(scorer, rows)
    return chosen_B.detach(), rejected_B.detach()


def with_references(rows: Sequence[Row], references_N2: Tensor) -> list[Row]:
    """The pairs with what AlignmentLoss asks of the reference, from the table of all of a round's by their `index`."""
    found = references_N2[[row["index"] for row in rows]].tolist()
    return [{**row, **dict(zip(REFERENCE_KEYS, values, strict=True))} for row, values in zip(rows, found, strict=True)]


def pair_logps(scorer: CompletionScorer, rows: list[Row]) -> tuple[Tensor, Tensor]:
    """log p(y given x) and log p(y^ given x) of B pairs: policy and reference alike."""
    batch = pair_batch(scorer, rows)
    return _by_side(scorer(batch).token_logps_N, batch)


def pair_batch(scorer: CompletionScorer, rows: list[Row]) -> CompletionBatch:
    """Each prompt once, with chosen and rejected behind it."""
    completions = [(row["completion_ids"], row["rejected_ids"]) for row in rows]
    return collate_behind([row["prompt_ids"] for row in rows], completions).to(_device(scorer))


def _by_side(token_logps_N: Tensor, batch: CompletionBatch) -> tuple[Tensor, Tensor]:
    chosen_B, rejected_B = sequence_sums(token_logps_N, batch.lengths_B).unflatten(0, (-1, 2)).unbind(1)
    return chosen_B, rejected_B


class DistillationLoss:
    """Equations (7)-(11): the student's NLL (sequence sum) + alpha * w(x, y) * KL(proxy to student).

    Rows add `soft_labels` and `trust`; one that is an `answer`, by the proxy itself, has no NLL. Both terms are
    averaged over the global batch's sequences; the KL is first averaged over a sequence's tokens (`sequence_mean`, the
    paper's form), or summed over them (`token_sum`, where both terms are averaged over tokens instead).
    """

    terms: tuple[str, ...] = ("nll", "kl")
    metrics: tuple[str, ...] = ("sequence_kl",)

    def __init__(self, global_batch: Sequence[Row], config: DistillationConfig):
        self._by_token = config.kl_reduction == "token_sum"
        self._unit = batch_completion_tokens(global_batch) if self._by_token else len(global_batch)
        self._alpha = config.alpha
        self._divergence = TOP_K_DIVERGENCES[config.divergence]

    def __call__(self, scorer: CompletionScorer, rows: list[Row]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        device = _device(scorer)
        batch = collate([r["prompt_ids"] for r in rows], [r["completion_ids"] for r in rows]).to(device)
        token_logps_N, kl_N = self._scores(scorer, batch, rows)
        kl_B = sequence_sums(kl_N, batch.lengths_B)
        trust_B = moved(torch.tensor([row["trust"] for row in rows]), device)
        weighted_B = trust_B * (kl_B if self._by_token else kl_B / batch.lengths_B.clamp(min=1))
        taught_B = moved(torch.tensor([0.0 if row.get("answer") else 1.0 for row in rows]), device)
        terms = {
            "nll": -(token_logps_N * taught_B[batch.rows_N]).sum() / self._unit,
            "kl": self._alpha * weighted_B.sum() / self._unit,
        }
        return terms, {"sequence_kl": kl_N.detach().sum()}

    def _scores(self, scorer: CompletionScorer, batch: CompletionBatch, rows: list[Row]) -> tuple[Tensor, Tensor]:
        """The student's log-probs of the batch's N completion tokens, and its divergence from the labels there."""
        target = self._target(batch, as_top_k([row["soft_labels"] for row in rows]).to(batch.labels_N.device))
        scores = scorer(batch, target.ids_NK)
        return scores.token_logps_N, self._divergence(target, scores.top)

    def _target(self, _: CompletionBatch, labels: TopK) -> TopK:
        """What the student is to learn, in place of the p of equation (10): the labels as they are."""
        return labels


class ShiftLoss(DistillationLoss):
    """The same with the student's own start as the target, moved from the proxy's base to its labels (`shifted`). Base
    and untaught student are read frozen, at the labels' ids."""

    def __init__(
        self,
        global_batch: Sequence[Row],
        config: DistillationConfig,
        base: CompletionScorer,
        untaught: CompletionScorer,
    ):
        super().__init__(global_batch, config)
        self._base, self._untaught = base, untaught

    @torch.no_grad()
    def _target(self, batch: CompletionBatch, labels: TopK) -> TopK:
        start, base = (model(batch, labels.ids_NK).top for model in (self._untaught, self._base))
        return shifted(start, labels, base)


class DenseLoss:
    """A dense divergence from a model whose whole distribution is at hand, averaged over the global batch's completion
    tokens: an open teacher's, which a black box does not allow, or the aligned proxy's. Rows are completions that this
    teacher wrote, or the student itself.

    The student's own are drawn without gradient. With y drawn from q, and D the divergence at the token after a prefix,

        E over y of [sum over t of grad D(p, q given y_<t)]  =  sum over prefixes of q(prefix) * grad D

    is what a step follows, up to the batch's tokens: GKD's estimator (Agarwal et al., arXiv 2306.13649).
    It is the gradient of the divergence at sampled prefixes, each held still; the change of q(prefix) itself, the
    policy-gradient part of a KL between whole sequences (MiniLLM), is not in it.
    """

    terms: tuple[str, ...] = ("divergence",)
    metrics: tuple[str, ...] = ()

    def __init__(self, global_batch: Sequence[Row], teacher: CompletionScorer, divergence: Divergence):
        self._tokens = batch_completion_tokens(global_batch)
        self._teacher = teacher
        self._divergence = divergence

    def __call__(self, scorer: CompletionScorer, rows: list[Row]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        batch = collate([r["prompt_ids"] for r in rows], [r["completion_ids"] for r in rows]).to(_device(scorer))
        with torch.no_grad():
            teacher_hidden_NH = self._teacher.hidden(batch)
        values_N = self._divergence.by_token(
            self._teacher.head(), teacher_hidden_NH, scorer.head(), scorer.hidden(batch)
        )
        return {"divergence": values_N.sum() / self._tokens}, {}


class CoarseLoss:
    """The same from a proxy in its engine, of which its likeliest ids are known and the one that was drawn: a lower
    bound of the dense divergence at each token (`losses/coarse.py`). Rows add `judged`, the engine's log-probs.

    The outcomes that are told apart follow from prefix and drawn token alone, and are held still as these are: a step
    follows the bound's gradient in the student's log-probs at sampled prefixes, by the estimator of DenseLoss.
    """

    terms: tuple[str, ...] = ("divergence",)
    metrics: tuple[str, ...] = ()

    def __init__(self, global_batch: Sequence[Row], divergence: Name):
        self._tokens = batch_completion_tokens(global_batch)
        self._divergence = divergence

    def __call__(self, scorer: CompletionScorer, rows: list[Row]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        device, judged = _device(scorer), [row["judged"] for row in rows]
        batch = collate([r["prompt_ids"] for r in rows], [r["completion_ids"] for r in rows]).to(device)
        token_logps_N = moved(torch.from_numpy(np.concatenate([one.token_logps_T for one in judged])), device)
        proxy = with_token(as_top_k(judged).to(device), batch.labels_N, token_logps_N)
        student = scorer(batch, proxy.ids_NK).top
        return {"divergence": coarse_divergence(self._divergence, proxy, student).sum() / self._tokens}, {}


def _device(scorer: CompletionScorer) -> torch.device:
    return next(scorer.parameters()).device
