"""The test slice, reported once."""

from __future__ import annotations

from dataclasses import dataclass

from proxykd.data.corpus_store import read_slice
from proxykd.evaluation.fidelity import SealedTeacher, mass_shares, score_records, spearman, teacher_kl
from proxykd.losses.trust import Trust
from proxykd.models.loading import load_scorer, read_adapter
from proxykd.models.scorer import CompletionScorer
from proxykd.stages.evaluate import (
    OPEN_TEACHER,
    STUDENT_AFTER,
    STUDENT_BEFORE,
    STUDENT_OFFLINE,
    EvaluationResult,
    ModelScores,
)
from proxykd.training.worker import Worker


@dataclass(frozen=True)
class EvaluationTask:
    """The proxies beside the base, and by what records are trusted, where a proxy gave labels."""

    adapters: list[str]
    trust: Trust | None


def evaluate(worker: Worker, task: EvaluationTask) -> EvaluationResult:
    """The test slice under every model; with a local teacher, whose seal is opened here, the true KL."""
    run, config, teaching = worker.run, worker.config, worker.config.teaching
    rows = read_slice(run, "test")
    budget = config.resources.micro_batch_tokens
    teacher = None
    if config.teacher.local is not None:
        frozen = config.teacher.local.model_copy(update={"method": "full"})
        opened = worker.workers.place(load_scorer(run.models / "teacher", frozen, trainable=False))
        teacher = SealedTeacher(opened)
    proxies = [*(["base"] if task.trust or task.adapters else []), *task.adapters]
    students = {STUDENT_BEFORE: run.models / "student", STUDENT_AFTER: run.student}
    if config.on_policy is not None:
        students[STUDENT_OFFLINE] = run.offline_student
    others = [*students, *([OPEN_TEACHER] if teaching.open_teacher else [])]
    models: dict[str, ModelScores] = {}
    worker.progress(0, len(proxies) + len(others), "models")

    def measure(name: str, scorer: CompletionScorer) -> None:
        worker.go_on()
        scores = score_records(scorer, rows, worker.workers, budget, teacher)
        kls = scores.true_kl
        models[name] = ModelScores(
            fidelity=scores.fidelity(),
            sequence_logps=[-value for value in scores.nll],
            tokens=scores.tokens,
            true_kl=scores.mean_true_kl(),
            record_kls=kls and [s / max(t, 1) for s, t in zip(kls, scores.tokens, strict=True)],
            teacher_kl=teacher_kl(scorer, rows, worker.workers, budget),
        )
        worker.progress(len(models), len(proxies) + len(others), "models")

    shares = None
    if proxies:
        proxy = worker.proxy(None, trainable=False)
        for name in proxies:
            if name != "base":
                read_adapter(proxy.model, run.adapters / name)
            measure(name, proxy)
        shares = mass_shares(proxy, rows, budget)
        del proxy
    frozen = config.student.model_copy(update={"method": "full"})
    for name, directory in students.items():
        measure(name, worker.workers.place(load_scorer(directory, frozen, trainable=False)))
    if teaching.open_teacher:
        measure(OPEN_TEACHER, worker.open_teacher())
    correlation = task.trust and _trust_correlation(models[task.trust.adapter], task.trust)
    return EvaluationResult(models=models, share_mass_over_095=shares, spearman_vs_true_kl=correlation)


def _trust_correlation(judged: ModelScores, trust: Trust) -> float | None:
    """Does a higher weight mean a proxy closer to the teacher? Rank correlation with the true KL, record by record."""
    if judged.record_kls is None:
        return None
    return spearman(trust.weights(judged.sequence_logps, judged.tokens), judged.record_kls)
