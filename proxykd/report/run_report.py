"""Writes report.json of a finished run, gathered from its stages' results."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from proxykd.config import RunConfig
from proxykd.evaluation.measures import MeanKl
from proxykd.report.blocks import corpus_counts, on_policy_report, round_report, sft, soft_labels, trust
from proxykd.report.provenance import git_revision, hardware
from proxykd.report.report_model import (
    AssistantReport,
    ProxyReport,
    RoundKl,
    RunFacts,
    RunReport,
    SealedTeacherReport,
    StageCost,
    StudentKl,
    StudentReport,
    TeacherReport,
    ValidationStart,
    WhiteBoxKl,
    WhiteBoxReport,
)
from proxykd.runs.adapter_names import BASE
from proxykd.runs.journal import replay
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import write_json
from proxykd.stages.align import ALIGN, in_force
from proxykd.stages.assist import ASSIST
from proxykd.stages.collect import COLLECT
from proxykd.stages.distil import DISTIL
from proxykd.stages.evaluate import (
    EVALUATE,
    OPEN_TEACHER,
    STUDENT_AFTER,
    STUDENT_BEFORE,
    STUDENT_OFFLINE,
    ModelScores,
)
from proxykd.stages.models import MODELS
from proxykd.stages.results import Results
from proxykd.stages.retokenise import RETOKENISE
from proxykd.stages.score import SCORE
from proxykd.stages.stage import Finished
from proxykd.stages.warmup import WARMUP

Models = dict[str, ModelScores]
"""Each model on the test slice, by the evaluation's names."""


def write_report(run: RunDirectory, stop_reason: str) -> RunReport:
    """Writes report/report.json and returns it."""
    report = build_report(run, stop_reason)
    write_json(run.report, report.model_dump())
    return report


def build_report(run: RunDirectory, stop_reason: str) -> RunReport:
    """The report of a run whose stages have all finished.

    Raises:
        RunError: a stage has not.
        IntegrityError: another version of the code wrote a stage's marker.
    """
    config, results = run.config(), Results.read(run)
    collected = results.of(COLLECT)
    return RunReport(
        run=_run(run, config),
        teacher=_teacher(config, results),
        collection=collected.summary if collected else None,
        corpus=corpus_counts(run),
        stages=[stage_cost(done) for done in results.stages],
        rounds=[round_report(result) for result in results.rounds(ALIGN)],
        stop_reason=stop_reason,
        proxy=_proxy(results),
        soft_labels=soft_labels(results),
        retokenised=results.of(RETOKENISE),
        trust=trust(results),
        white_box=_white_box(results),
        student=_student(results),
        sft=sft(results),
        grey_box=_teacher_kl(results.need(EVALUATE).models),
        sealed_teacher=sealed_teacher(results),
    )


def stage_cost(done: Finished[Any]) -> StageCost:
    """What a finished stage took."""
    return StageCost(
        **done.model_dump(include=set(StageCost.model_fields)),
        device_hours=done.busy_seconds * done.devices / 3600,
    )


def sealed_teacher(results: Results) -> SealedTeacherReport | None:
    """The true KL from the teacher to the proxy after each round (warm-up as round 0), to the student, and to a
    white-box baseline's models; None for a black box."""
    models = results.need(EVALUATE).models
    if models[STUDENT_AFTER].true_kl is None:
        return None
    return SealedTeacherReport(
        kl_teacher_proxy=_proxy_kl(results, models),
        kl_teacher_student=StudentKl(
            before=_kl(models[STUDENT_BEFORE]),
            offline=_kl(models[STUDENT_OFFLINE]) if STUDENT_OFFLINE in models else None,
            after=_kl(models[STUDENT_AFTER]),
        ),
        kl_teacher_base=_kl(models[BASE]) if BASE in models else None,
        kl_teacher_white_box=_white_box_kl(results, models),
    )


def _run(run: RunDirectory, config: RunConfig) -> RunFacts:
    return RunFacts(
        id=run.id,
        name=config.name,
        config_sha256=config.sha256,
        git_revision=git_revision(),
        started_at=_iso(replay(run.journal)[0]["time"]),
        finished_at=_iso(datetime.now(UTC).timestamp()),
        hardware=hardware(),
    )


def _teacher(config: RunConfig, results: Results) -> TeacherReport:
    return TeacherReport(
        model=config.teacher.model,
        parameters=results.need(MODELS).parameters.get("teacher"),
        local=config.teacher.local is not None,
    )


def _proxy(results: Results) -> ProxyReport | None:
    if (scored := results.of(SCORE)) is None:
        return None
    models, warmup = results.need(EVALUATE).models, results.of(WARMUP)
    return ProxyReport(
        base=models[BASE].fidelity,
        warmup=models[warmup.adapter].fidelity if warmup else None,
        aligned=models[scored.adapter].fidelity,
        validation=ValidationStart(base=warmup.base, warmup=warmup.validation) if warmup else None,
    )


def _white_box(results: Results) -> WhiteBoxReport | None:
    models, assist = results.need(EVALUATE).models, results.of(ASSIST)
    if OPEN_TEACHER not in models:
        return None
    assistant = None
    if assist is not None:
        assistant = AssistantReport(adapter=assist.adapter, **models[assist.adapter].fidelity.model_dump())
    return WhiteBoxReport(teacher=models[OPEN_TEACHER].fidelity, assistant=assistant)


def _student(results: Results) -> StudentReport:
    models = results.need(EVALUATE).models
    return StudentReport(
        **results.need(DISTIL).model_dump(exclude={"steps"}),
        before=models[STUDENT_BEFORE].fidelity,
        offline=models[STUDENT_OFFLINE].fidelity if STUDENT_OFFLINE in models else None,
        after=models[STUDENT_AFTER].fidelity,
        on_policy=on_policy_report(results),
    )


def _teacher_kl(models: Models) -> dict[str, MeanKl] | None:
    known = {name: scores.teacher_kl for name, scores in models.items() if scores.teacher_kl is not None}
    return known or None


def _proxy_kl(results: Results, models: Models) -> list[RoundKl]:
    if (warmup := results.of(WARMUP)) is None:
        return []
    rounds = results.rounds(ALIGN)
    numbers, adapters = [0, *(result.round for result in rounds)], in_force(warmup.adapter, rounds)
    return [
        RoundKl(adapter=adapter, round=number, **_kl(models[adapter]).model_dump())
        for number, adapter in zip(numbers, adapters, strict=True)
    ]


def _white_box_kl(results: Results, models: Models) -> WhiteBoxKl | None:
    if OPEN_TEACHER not in models:
        return None
    assist = results.of(ASSIST)
    return WhiteBoxKl(teacher=_kl(models[OPEN_TEACHER]), assistant=_kl(models[assist.adapter]) if assist else None)


def _kl(scores: ModelScores) -> MeanKl:
    """Of a model that was judged beside others whose true KL is known."""
    assert scores.true_kl is not None
    return scores.true_kl


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
