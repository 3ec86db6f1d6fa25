"""After the distillation: the student learns from its own samples of D_s's prompts, by the word of a judge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from proxykd.config import ENGINE_TOP_K, OnPolicyConfig
from proxykd.data.label_shards import CompletionLogps
from proxykd.data.retokenised import vocabularies
from proxykd.data.soft_labels import LabelSource
from proxykd.losses.divergences import Divergence
from proxykd.models.loading import load_scorer, stop_token_ids
from proxykd.models.scorer import CompletionScorer
from proxykd.stages.on_policy import OnPolicyResult
from proxykd.text.corpus import Row
from proxykd.training.across_samples import AcrossLoss, SampleReader
from proxykd.training.drift import LENGTH, drift, watched
from proxykd.training.loops.score import score_rows
from proxykd.training.resumable import ResumableTraining
from proxykd.training.sampling import sample_rows
from proxykd.training.saving import save_student
from proxykd.training.stage_losses import AlignmentLoss, CoarseLoss, DenseLoss, put_references, with_references
from proxykd.training.trainer import StageLoss, Step, Trainer
from proxykd.training.worker import Worker


class EngineScore(Protocol):
    def __call__(self, *, prompts: list[list[int]], completions: list[list[int]], top_k: int) -> list[CompletionLogps]:
        """The log-probs of each completion's tokens, with the likeliest at each."""


@dataclass(frozen=True)
class OnPolicyTask:
    """The records of one epoch; where the proxy judges, its adapter, whose log-probs on likeliest ids are told apart by
    `source`, and how its engine is asked for them."""

    records: int
    adapter: str | None = None
    source: LabelSource | None = None
    engine: EngineScore | None = None


class Judge(Protocol):
    """What is learned from samples; whatever model it asks lies beside the student, frozen."""

    def sampler(self, student: CompletionScorer) -> CompletionScorer:
        """The model that the samples are drawn from."""

    def batch(self, trainer: Trainer, rows: list[Row], samples: list[Row]) -> tuple[list[Row], StageLoss]:
        """A global batch's rows as trained on, and their loss, from the teacher's rows and the same with samples."""


class ProxyJudge:
    """The aligned proxy: a divergence from its whole distribution at each token of the student's own samples, by the
    estimator of DenseLoss."""

    def __init__(self, worker: Worker, task: OnPolicyTask, config: OnPolicyConfig):
        self._proxy = worker.proxy(task.adapter, trainable=False)
        self._divergence = Divergence(config.divergence)

    def sampler(self, student: CompletionScorer) -> CompletionScorer:
        return student

    def batch(self, trainer: Trainer, rows: list[Row], samples: list[Row]) -> tuple[list[Row], StageLoss]:
        return samples, DenseLoss(samples, self._proxy, self._divergence)


class EngineJudge:
    """The aligned proxy in its engine: a lower bound of that divergence, from what the engine tells of each token."""

    def __init__(self, _: Worker, task: OnPolicyTask, config: OnPolicyConfig):
        assert task.engine is not None
        self._engine, self._divergence = task.engine, config.divergence

    def sampler(self, student: CompletionScorer) -> CompletionScorer:
        return student

    def batch(self, trainer: Trainer, rows: list[Row], samples: list[Row]) -> tuple[list[Row], StageLoss]:
        """Each worker asks for its own share."""
        mine = {row["index"]: row for part, _ in trainer.micro_batches(samples) for row in part}
        scored = self._engine(
            prompts=[list(row["prompt_ids"]) for row in mine.values()],
            completions=[list(row["completion_ids"]) for row in mine.values()],
            top_k=ENGINE_TOP_K,
        )
        judged = dict(zip(mine, scored, strict=True))
        return [{**row, "judged": judged.get(row["index"])} for row in samples], CoarseLoss(samples, self._divergence)


class AcrossJudge:
    """The aligned proxy, beside the trainer or in its engine, of a student with a tokenizer of its own: a lower bound
    of that divergence, by bytes, from the likeliest of its own tokens."""

    def __init__(self, worker: Worker, task: OnPolicyTask, config: OnPolicyConfig):
        assert task.source is not None
        self._worker, self._divergence = worker, config.divergence
        self._source, self._engine = replace(task.source, top_k=ENGINE_TOP_K, method="top_k"), task.engine
        self._proxy = None if task.engine else worker.proxy(task.adapter, trainable=False)
        names = (str(worker.run.models / name) for name in ("proxy", "student"))
        self._reader = SampleReader(vocabularies(*names), worker.config.corpus.max_length)

    def sampler(self, student: CompletionScorer) -> CompletionScorer:
        return student

    def batch(self, trainer: Trainer, rows: list[Row], samples: list[Row]) -> tuple[list[Row], StageLoss]:
        """Each worker reads and has judged its own share."""
        mine = {row["index"]: row for part, _ in trainer.micro_batches(samples) for row in part}
        read = {index: self._reader.read(row) for index, row in mine.items()}
        asked = {index: one.ours for index, one in read.items() if one is not None}
        prompts, completions = (
            [one.prompt_ids for one in asked.values()],
            [one.completion_ids for one in asked.values()],
        )
        scored = dict(zip(asked, self._scored(prompts, completions), strict=True))
        judged = {i: self._reader.judged(row, read[i], scored.get(i)) for i, row in mine.items()}
        return [judged.get(row["index"], row) for row in samples], AcrossLoss(samples, self._divergence)

    def _scored(self, prompts: list[list[int]], completions: list[list[int]]) -> list[CompletionLogps]:
        if self._engine is not None:
            return self._engine(prompts=prompts, completions=completions, top_k=ENGINE_TOP_K) if prompts else []
        assert self._proxy is not None
        rows: list[Row] = [
            {"prompt_ids": prompt, "completion_ids": completion, "length": len(prompt) + len(completion)}
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        return score_rows(self._worker, self._proxy, rows, self._source)


class PreferenceJudge:
    """The teacher's text, preferred to what the student would have said before the phase: NLL + DPO against that
    student, which draws the rejected side too (after SODA, arXiv 2604.03873)."""

    def __init__(self, worker: Worker, _: OnPolicyTask, config: OnPolicyConfig):
        frozen = worker.config.student.model_copy(update={"method": "full"})
        self._before = worker.workers.place(load_scorer(worker.run.offline_student, frozen, trainable=False))
        self._config = config

    def sampler(self, student: CompletionScorer) -> CompletionScorer:
        return self._before

    def batch(self, trainer: Trainer, rows: list[Row], samples: list[Row]) -> tuple[list[Row], StageLoss]:
        """References are made on the micro-batches that are trained on: what a row lies with moves its last digits."""
        pairs = [
            {
                **row,
                "index": index,
                "rejected_ids": sample["completion_ids"],
                "length": row["length"] + len(sample["completion_ids"]),
            }
            for index, (row, sample) in enumerate(zip(rows, samples, strict=True))
        ]
        references_N2 = torch.zeros(len(pairs), 2, dtype=torch.float64, device=trainer.workers.device)
        for part, _ in trainer.micro_batches(pairs):
            put_references(references_N2, self._before, part)
        pairs = with_references(pairs, references_N2)
        return pairs, AlignmentLoss(pairs, self._config)


JUDGES: dict[tuple[str, str], Callable[[Worker, OnPolicyTask, OnPolicyConfig], Judge]] = {
    ("proxy", "trainer"): ProxyJudge,
    ("proxy", "engine"): EngineJudge,
    ("preference", "trainer"): PreferenceJudge,
}
"""By `on_policy.judge` and `on_policy.source`, of a student that has the proxy's tokenizer."""


def judge_of(worker: Worker, task: OnPolicyTask, config: OnPolicyConfig) -> Judge:
    if config.judge == "proxy" and worker.config.student.tokenizer == "own":
        return AcrossJudge(worker, task, config)
    return JUDGES[config.judge, config.source](worker, task, config)


def on_policy(worker: Worker, task: OnPolicyTask) -> OnPolicyResult:
    """Trains the student that the distillation left, until its samples drift at most, and saves it beside that one."""
    config, offline = worker.config.on_policy, worker.run.offline_student
    assert config is not None
    scorer = worker.workers.place(load_scorer(offline, worker.config.student, seed=worker.config.seed))
    judge = judge_of(worker, task, config)
    stops = stop_token_ids(scorer.model)

    def drifted(steps: list[Step]) -> bool:
        return drift(steps, config) is not None

    training = ResumableTraining(worker, scorer, config, task.records, student=True, start_counts=True, ended=drifted)

    def step(rows: list[Row]) -> Step:
        trainer = training.trainer
        samples = sample_rows(worker, judge.sampler(scorer), rows, config.max_new_tokens, trainer.steps)
        done = trainer.step(*judge.batch(trainer, rows, samples))
        seen = watched([row["completion_ids"] for row in samples], stops)
        return replace(done, metrics={**done.metrics, **seen})

    training.begin_curve()
    steps = training.run(step)
    save_student(worker, scorer, offline, worker.run.on_policy_student, training.validation().fidelity())
    return OnPolicyResult(
        drift=drift(steps, config),
        sampled_tokens=round(sum(step.metrics[LENGTH] for step in steps)),
        **training.facts(),
    )
