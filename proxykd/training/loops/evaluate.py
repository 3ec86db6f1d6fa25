"""The test slice, reported once."""

from __future__ import annotations

from dataclasses import dataclass, replace

from proxykd.data.corpus_store import read_slice
from proxykd.data.retokenised import student_slice, vocabularies
from proxykd.evaluation.boundary_kl import boundary_kls, labelled_by
from proxykd.evaluation.fidelity import SealedTeacher, bytes_of, mass_shares, score_records, spearman, teacher_kl
from proxykd.evaluation.measures import Difference
from proxykd.evaluation.standard_errors import ratio_of_sums
from proxykd.losses.trust import Trust
from proxykd.models.loading import load_scorer, read_adapter
from proxykd.models.scorer import CompletionScorer
from proxykd.stages.evaluate import (
    OPEN_TEACHER,
    STUDENT_AFTER,
    STUDENT_BEFORE,
    STUDENT_OFFLINE,
    STUDENT_SFT,
    EvaluationResult,
    ModelScores,
)
from proxykd.text.corpus import Row
from proxykd.training.worker import Worker


@dataclass(frozen=True)
class EvaluationTask:
    """The proxies beside the base, and by what records are trusted, where a proxy gave labels."""

    adapters: list[str]
    trust: Trust | None


def evaluate(worker: Worker, task: EvaluationTask) -> EvaluationResult:
    """The test slice under every model; with a local teacher, whose seal is opened here, the true KL (to a student of
    another tokenizer, where both can be cut)."""
    run, config, teaching = worker.run, worker.config, worker.config.teaching
    rows, student_rows = read_slice(run, "test"), student_slice(run, "test")
    written, student_written = (
        bytes_of(of, run.models / name) for of, name in ((rows, "proxy"), (student_rows, "student"))
    )
    budget = config.resources.micro_batch_tokens
    teacher = None
    if config.teacher.local is not None:
        frozen = config.teacher.local.model_copy(update={"method": "full"})
        opened = worker.workers.place(load_scorer(run.models / "teacher", frozen, trainable=False))
        teacher = SealedTeacher(opened)
    spans = teacher is not None and config.student.tokenizer == "own"
    if spans:
        both = vocabularies(str(run.models / "proxy"), str(run.models / "student"))
        student_rows = labelled_by(opened, rows, student_rows, both, worker.workers, budget)
    proxies = [*(["base"] if task.trust or task.adapters else []), *task.adapters]
    students = {STUDENT_AFTER: run.student}
    if config.on_policy is not None:
        students[STUDENT_OFFLINE] = run.offline_student
    if config.sft is not None:
        students[STUDENT_SFT] = run.sft_student
    many = len(proxies) + 1 + len(students) + int(teaching.open_teacher)
    models: dict[str, ModelScores] = {}
    worker.progress(0, many, "models")

    def measure(name: str, scorer: CompletionScorer, student: bool = False) -> None:
        worker.go_on()
        by_span = student and spans
        scores = score_records(
            scorer, student_rows if student else rows, worker.workers, budget, None if by_span else teacher
        )
        if by_span:
            scores = replace(scores, true_kl=boundary_kls(scorer, student_rows, worker.workers, budget))
        kls = scores.true_kl
        models[name] = ModelScores(
            fidelity=scores.fidelity(student_written if student else written),
            sequence_logps=[-value for value in scores.nll],
            tokens=scores.tokens,
            true_kl=scores.mean_true_kl(),
            record_kls=kls and [s / max(t, 1) for s, t in zip(kls, scores.tokens, strict=True)],
            teacher_kl=teacher_kl(scorer, student_rows if student else rows, worker.workers, budget),
        )
        worker.progress(len(models), many, "models")

    shares = None
    if proxies:
        proxy = worker.proxy(None, trainable=False)
        for name in proxies:
            if name != "base":
                read_adapter(proxy.model, run.adapters / name)
            measure(name, proxy)
        shares = mass_shares(proxy, rows, budget)
        del proxy
    measure(STUDENT_BEFORE, worker.untaught_student(), student=True)
    frozen = config.student.model_copy(update={"method": "full"})
    for name, directory in students.items():
        measure(name, worker.workers.place(load_scorer(directory, frozen, trainable=False)), student=True)
    if teaching.open_teacher:
        measure(OPEN_TEACHER, worker.open_teacher())
    correlation = task.trust and _trust_correlation(models[task.trust.adapter], task.trust)
    versus = STUDENT_SFT in models and _difference(models[STUDENT_AFTER], models[STUDENT_SFT], student_rows)
    return EvaluationResult(
        models=models,
        share_mass_over_095=shares,
        spearman_vs_true_kl=correlation,
        student_less_sft=versus or None,
    )


def _difference(one: ModelScores, other: ModelScores, rows: list[Row]) -> Difference:
    """One model less the other, paired by record, with prompts as clusters."""
    tokens, prompts = one.tokens, [row["prompt_key"] for row in rows]
    nlls = [b - a for a, b in zip(one.sequence_logps, other.sequence_logps, strict=True)]
    nll, nll_stderr = ratio_of_sums(nlls, tokens, prompts)
    true_kl = true_kl_stderr = None
    if one.record_kls is not None and other.record_kls is not None:
        kls = [n * (a - b) for n, a, b in zip(tokens, one.record_kls, other.record_kls, strict=True)]
        true_kl, true_kl_stderr = ratio_of_sums(kls, tokens, prompts)
    return Difference(
        nll=nll, nll_stderr=nll_stderr, true_kl=true_kl, true_kl_stderr=true_kl_stderr, prompts=len(set(prompts))
    )


def _trust_correlation(judged: ModelScores, trust: Trust) -> float | None:
    """Does a higher weight mean a proxy closer to the teacher? Rank correlation with the true KL, record by record."""
    if judged.record_kls is None:
        return None
    return spearman(trust.weights(judged.sequence_logps, judged.tokens), judged.record_kls)
