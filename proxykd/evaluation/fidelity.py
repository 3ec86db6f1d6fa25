"""Fidelity: how closely a model follows the teacher on held-out text. And, where a seal may be opened, the true KL."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from proxykd.data.pairs import SIDES
from proxykd.data.teacher_logprobs import TeacherAt, places_of
from proxykd.errors import ModelError
from proxykd.evaluation.measures import Fidelity, MassShares, MeanKl
from proxykd.evaluation.standard_errors import ratio_of_sums
from proxykd.losses.sequence_losses import sequence_sums
from proxykd.models.batching import CompletionBatch, collate
from proxykd.models.micro_batches import plan_micro_batches, share_of_worker
from proxykd.models.parallel import Workers
from proxykd.models.scorer import CompletionScorer
from proxykd.text.corpus import Row
from proxykd.text.token_bytes import TokenBytes
from proxykd.text.tokenizer import load_tokenizer


@dataclass(frozen=True)
class RecordScores:
    """Per record, in the order of the rows: completion tokens, summed NLL and true KL (nats), top-1 agreements, and the
    key of its prompt."""

    tokens: list[int]
    nll: list[float]
    agreements: list[float]
    prompts: list[str]
    true_kl: list[float] | None = None

    def fidelity(self, text_bytes: int | None = None) -> Fidelity:
        """F of docs/design.md, report.json: mean NLL a token, its standard error (prompts as clusters), and agreement.

        Sequence agreement is the share of completions that greedy decoding writes just as the teacher did. `text_bytes`
        are those of all completions, where they are known.
        """
        mean, stderr = ratio_of_sums(self.nll, self.tokens, self.prompts)
        return Fidelity(
            held_out_nll=mean,
            stderr=stderr,
            top1_agreement=sum(self.agreements) / sum(self.tokens),
            sequence_agreement=sum(map(float.__eq__, self.agreements, map(float, self.tokens))) / len(self.tokens),
            records=len(self.tokens),
            prompts=len(set(self.prompts)),
            tokens=sum(self.tokens),
            nll_a_byte=sum(self.nll) / text_bytes if text_bytes else None,
        )

    def mean_true_kl(self) -> MeanKl | None:
        """The mean a token of the true KL, with its standard error; None where no seal was opened."""
        if self.true_kl is None:
            return None
        kl, stderr = ratio_of_sums(self.true_kl, self.tokens, self.prompts)
        return MeanKl(kl=kl, stderr=stderr, tokens=sum(self.tokens))


def bytes_of(rows: Sequence[Row], folder: Path) -> int | None:
    """How many bytes the rows' completions have by their tokens, control tokens aside; None where a token's are not
    known. `folder` has the tokenizer."""
    try:
        tokens = TokenBytes(load_tokenizer(folder))
    except ModelError:
        return None
    lengths_V = np.where(tokens.control_V, 0, tokens.lengths_V)
    return sum(int(lengths_V[np.asarray(row["completion_ids"], np.int64)].sum()) for row in rows)


class SealedTeacher:
    """A local teacher whose seal the evaluation may open. It runs over the held-out rows once, for all models.

    Nothing in training may see it.
    """

    def __init__(self, teacher: CompletionScorer):
        self._teacher = teacher
        self._hidden: dict[int, Tensor | None] = {}

    def read(self, number: int, batch: CompletionBatch, keep: bool = True) -> None:
        """Runs over micro-batch `number`, the first time, and keeps its hidden states on the CPU for every model.

        Where the teacher is sharded, every worker must call it for every number; one that has no such micro-batch
        passes another, and does not `keep` it.
        """
        if number not in self._hidden:
            with torch.no_grad():
                hidden_NH = self._teacher.hidden(batch)
            self._hidden[number] = hidden_NH.cpu() if keep else None
        if isinstance(self._teacher, FSDPModule):
            self._teacher.unshard()  # `logits_of` reads the head outside of the model's forward

    def logits_of(self, number: int) -> Callable[[slice], Tensor]:
        """The teacher's logits for slices of a micro-batch that was read."""
        head, hidden_NH = self._teacher.head(), self._hidden[number]
        assert hidden_NH is not None
        return lambda part: head.logits(hidden_NH[part].to(head.linear.weight.device))


def score_records(
    scorer: CompletionScorer,
    rows: Sequence[Row],
    workers: Workers,
    micro_batch_tokens: int,
    teacher: SealedTeacher | None = None,
) -> RecordScores:
    """Scores every row's completion; the rows are shared out over the workers and gathered on each.

    With a sealed teacher, `true_kl` is each record's sum of the full-vocabulary KL(teacher || model).
    """
    table = torch.zeros(len(rows), 3, dtype=torch.float64, device=workers.device)
    for number, part, batch in my_batches(scorer, rows, workers, micro_batch_tokens, teacher):
        scores = scorer.score(batch, versus=teacher.logits_of(number) if teacher else None)
        assert scores.argmax_N is not None
        kl_N = torch.zeros_like(scores.token_logps_N) if scores.kl_N is None else scores.kl_N
        columns = (-scores.token_logps_N, scores.argmax_N == batch.labels_N, kl_N)
        table[part] = torch.stack([sequence_sums(c, batch.lengths_B) for c in columns], dim=1)
    nll, agreements, true_kl = workers.sum(table).T.tolist()
    tokens = [len(row["completion_ids"]) for row in rows]
    return RecordScores(tokens, nll, agreements, [row["prompt_key"] for row in rows], true_kl if teacher else None)


def teacher_kl(
    scorer: CompletionScorer, rows: Sequence[Row], workers: Workers, micro_batch_tokens: int
) -> MeanKl | None:
    """A lower bound of KL(teacher || model) in nats a token, over the tokens at which the teacher's log-probs are
    known (teacher_logprobs.py); None where there are none."""
    places = [len(places_of(row)) for row in rows]
    if not any(places):
        return None
    sums = torch.zeros(len(rows), dtype=torch.float64, device=workers.device)
    for _, part, batch in my_batches(scorer, rows, workers, micro_batch_tokens):
        teacher = TeacherAt([rows[i] for i in part], workers.device)
        with torch.no_grad():
            kl_N = teacher.kl(scorer(batch, teacher.top.ids_NK).top)
        sums[part] = sequence_sums(kl_N, batch.lengths_B)
    kl, stderr = ratio_of_sums(workers.sum(sums).tolist(), places, [row["prompt_key"] for row in rows])
    return MeanKl(kl=kl, stderr=stderr, tokens=sum(places))


def token_logps(
    scorer: CompletionScorer, rows: Sequence[Row], workers: Workers, micro_batch_tokens: int
) -> list[list[float]]:
    """Each row's completion, token by token: log-probs in nats, on every worker."""
    found: dict[int, list[float]] = {}
    for _, part, batch in my_batches(scorer, rows, workers, micro_batch_tokens):
        logps_N = scorer.score(batch).token_logps_N.float().cpu()
        for index, logps in zip(part, logps_N.split(batch.lengths_B.tolist()), strict=True):
            found[index] = logps.tolist()
    everyones = {index: logps for part in workers.gather_objects(found) for index, logps in part.items()}
    return [everyones[index] for index in range(len(rows))]


def pair_token_logps(
    scorer: CompletionScorer, pairs: Sequence[Row], workers: Workers, micro_batch_tokens: int
) -> dict[str, list[list[float]]]:
    """Both completions of each pair, by side, token by token: log-probs in nats. Every worker must call it."""
    rows = [
        {
            "prompt_ids": pair["prompt_ids"],
            "completion_ids": pair[key],
            "length": len(pair["prompt_ids"]) + len(pair[key]),
        }
        for key in SIDES.values()
        for pair in pairs
    ]
    logps = token_logps(scorer, rows, workers, micro_batch_tokens)
    return {side: logps[i * len(pairs) : (i + 1) * len(pairs)] for i, side in enumerate(SIDES)}


def my_batches(
    scorer: CompletionScorer,
    rows: Sequence[Row],
    workers: Workers,
    micro_batch_tokens: int,
    teacher: SealedTeacher | None = None,
) -> Iterator[tuple[int, list[int], CompletionBatch]]:
    """This worker's micro-batches, each with its number and the indices of its rows; the teacher has read them."""
    plan = plan_micro_batches([row["length"] for row in rows], micro_batch_tokens, workers.world)
    for number, part in enumerate(share_of_worker(plan, workers.rank, workers.world)):
        if not part and workers.mode == "ddp":
            continue
        batch = _collate(rows, part or plan[0], workers.device)
        if teacher is not None:
            teacher.read(number, batch, keep=bool(part))
        if part:
            yield number, part, batch
        else:  # the collectives of a forward pass need every worker
            scorer.score(batch)


def mass_shares(scorer: CompletionScorer, rows: Sequence[Row], micro_batch_tokens: int, top_k: int = 50) -> MassShares:
    """Figure 5: for k = 1..top_k, the share of tokens whose k most likely tokens hold more than 0.95 of the mass."""
    above = torch.zeros(top_k, dtype=torch.float64)
    tokens = 0
    for part in plan_micro_batches([row["length"] for row in rows], micro_batch_tokens):
        scores = scorer.score(_collate(rows, part, next(scorer.parameters()).device), top_k)
        assert scores.top is not None
        mass_NK = scores.top.logps_NK.double().exp().cumsum(-1).cpu()
        above[: mass_NK.shape[1]] += (mass_NK > 0.95).sum(0)
        tokens += len(mass_NK)
    return MassShares(k=list(range(1, top_k + 1)), share=(above / max(tokens, 1)).tolist())


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
