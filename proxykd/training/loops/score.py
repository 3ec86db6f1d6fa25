"""Appendix A.1 by the trainers' own forward pass: top-K, tail and the actual token of D_s's completions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from proxykd.data.corpus_store import answer_shards, slice_shards
from proxykd.data.label_shards import CompletionLogps, write_soft_labels
from proxykd.data.row_ranges import read_shard_rows
from proxykd.data.soft_labels import LabelSource
from proxykd.models.batching import CompletionBatch, collate
from proxykd.models.micro_batches import plan_micro_batches
from proxykd.models.scorer import CompletionScorer, TokenScores
from proxykd.runs.storage import unfinished
from proxykd.stages.stage import Result
from proxykd.text.corpus import Row
from proxykd.text.seeds import sample_seed
from proxykd.training.worker import Worker


@dataclass(frozen=True)
class ScoreTask:
    """Whose labels, an adapter's or the base's (None), and how they are told apart on disk; on D_s, or on that
    adapter's own answers."""

    adapter: str | None
    source: LabelSource
    on_answers: bool = False


class Scored(Result):
    """Nothing: what was found is in the shards."""


def score(worker: Worker, task: ScoreTask) -> Scored:
    """Soft labels by the trainer's own forward pass: top-K and tail, or draws, and the actual token (appendix
    A.1).

    Each worker scores a shard of its own at a time, with as many forward passes as the others.
    """
    workers = worker.workers
    run, adapter, slice_name = worker.run, task.source.adapter, worker.config.corpus.slice_for("distillation")
    labels = run.answer_labels(adapter) if task.on_answers else run.soft_labels(adapter)
    shards = answer_shards(run, adapter) if task.on_answers else slice_shards(run, slice_name)
    scorer = worker.proxy(task.adapter, trainable=False)
    worker.progress(0, len(shards), "shards")
    for done in range(0, len(shards), workers.world):
        worker.go_on()
        mine = [path for path in shards[done:][workers.rank : workers.rank + 1] if unfinished(labels / path.name)]
        rows = [row for path in mine for row in read_shard_rows(path)]
        scored = score_rows(worker, scorer, rows, task.source)
        for path in mine:
            write_soft_labels(labels / path.name, rows, scored, task.source)
        worker.progress(min(done + workers.world, len(shards)), len(shards), "shards")
    return Scored()


def score_rows(worker: Worker, scorer: CompletionScorer, rows: list[Row], source: LabelSource) -> list[CompletionLogps]:
    """Of each row's completion, in micro-batches. Every worker must call it, with rows of its own."""
    results: dict[int, CompletionLogps] = {}
    plan = plan_micro_batches([row["length"] for row in rows], worker.config.resources.micro_batch_tokens)
    batches = [
        collate([rows[i]["prompt_ids"] for i in part], [rows[i]["completion_ids"] for i in part]) for part in plan
    ]
    for batch, part in zip(worker.workers.in_step(scorer, batches), plan, strict=True):
        scores = _scores(scorer, batch, [rows[i] for i in part], source, worker.config.seed)
        assert scores.top is not None
        columns = (scores.token_logps_N, scores.top.ids_NK, scores.top.logps_NK, scores.top.tail_logmass_N)
        ends = batch.lengths_B.cumsum(0)[:-1].tolist()
        split = [np.split(column.cpu().numpy(), ends) for column in columns]
        for index, logps, ids, top, tail in zip(part, *split, strict=True):
            results[index] = CompletionLogps(logps, ids, top, tail, source.adapter)
    return [results[i] for i in range(len(rows))]


def _scores(
    scorer: CompletionScorer, batch: CompletionBatch, rows: list[Row], source: LabelSource, seed: int
) -> TokenScores:
    if source.method == "top_k":
        return scorer.score(batch, source.top_k)
    return scorer.draw(batch, _uniforms(rows, source.top_k, seed).to(batch.labels_N.device))


def _uniforms(rows: list[Row], top_k: int, seed: int) -> Tensor:
    """Numbers of [0, 1) for K draws at each completion token, [N, K]: each record's by a seed of its own, its tokens in
    order, so that shards, workers and a resumed run draw alike."""
    found = []
    for row in rows:
        draws = torch.Generator().manual_seed(sample_seed(seed, 0, row["id"]))
        found.append(torch.rand(len(row["completion_ids"]), top_k, generator=draws, dtype=torch.float64))
    return torch.cat(found)
