"""What a study found, in numbers, from its runs' own reports."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from statistics import fmean

from proxykd.evaluation.benchmarks import AVERAGE, TaskScore
from proxykd.evaluation.measures import Fidelity
from proxykd.report.blocks import TrustReport
from proxykd.report.provenance import git_revision, hardware
from proxykd.report.report_model import RunReport, read_report
from proxykd.report.run_report import stage_cost
from proxykd.stages.distil import DISTIL
from proxykd.stages.evaluate import EVALUATE, OPEN_TEACHER, ModelScores
from proxykd.stages.models import MODELS
from proxykd.stages.on_policy import ON_POLICY
from proxykd.stages.results import Results
from proxykd.stages.warmup import WARMUP
from proxykd.study.comparison import MEASURES, BySeed, compared, runs_of
from proxykd.study.saving import savings
from proxykd.study.sizes import size_table
from proxykd.study.studies import Arm, StudyConfig, StudyDirectory
from proxykd.study.study_model import ArmKl, ArmReport, Calibration, Row, StageHours, StudyFacts, StudyReport


def build_study_report(directory: StudyDirectory) -> StudyReport:
    """All numbers that a reader may rely on: every run, the tables of means, what is saved, what a stage costs."""
    study = directory.study()
    arms = [_arm(directory, arm) for arm in directory.arms()]
    return StudyReport(
        study=StudyFacts(
            id=directory.id,
            name=study.name,
            seeds=list(study.seeds),
            reference=study.reference,
            git_revision=git_revision(),
            hardware=hardware(),
        ),
        arms=arms,
        table=table(study, arms),
        sizes=size_table(study, arms),
        savings=savings(study, arms),
        benchmarks=benchmark_table(study, arms),
        costs=costs([arm for arm in arms if arm.size is None]),
    )


def known_tasks(report: StudyReport) -> list[str]:
    """The benchmarks that any arm has scores of, and their average; empty where there are none."""
    known = {task: None for arm in report.arms for scores in arm.benchmarks.values() for task in scores}
    return [*known, AVERAGE] if known else []


def _arm(directory: StudyDirectory, arm: Arm) -> ArmReport:
    """One arm with one seed and size, in the words of docs/design.md, report.json."""
    run = directory.run(arm)
    report, results = read_report(run), Results.read(run)
    source = _source(report, results)
    made = [stage_cost(done) for done in results.stages if done.adopted_from is None]
    return ArmReport(
        name=arm.name,
        seed=arm.seed,
        size=arm.size,
        records=report.corpus.records - report.corpus.validation - report.corpus.test,
        run=run.id,
        proxy=report.proxy.aligned if report.proxy else None,
        source=source.fidelity if source else None,
        student=report.student.after,
        student_before=report.student.before,
        validation=(results.of(ON_POLICY) or results.need(DISTIL)).kept_point,
        curve=report.student.curve,
        sealed_teacher=_kl(report, source),
        trust=report.trust,
        calibration=_calibration(report.trust, source),
        alignment=_alignment(report),
        mass=report.soft_labels.share_mass_over_095 if report.soft_labels else None,
        parameters=results.need(MODELS).parameters,
        rounds=report.rounds,
        benchmarks=report.benchmarks,
        device_hours=sum(stage.device_hours for stage in report.stages),
        own_device_hours=sum(stage.device_hours for stage in made),
        stages=report.stages,
    )


def _kl(report: RunReport, source: ModelScores | None) -> ArmKl | None:
    if report.sealed_teacher is None:
        return None
    theirs = source.true_kl if source else None
    return ArmKl(student=report.sealed_teacher.kl_teacher_student.after.kl, source=theirs.kl if theirs else None)


def _alignment(report: RunReport) -> list[Fidelity]:
    """The proxy's validation fidelity: base, warm-up, every round. Empty where nothing was aligned."""
    start = report.proxy.validation if report.proxy else None
    return [start.base, start.warmup, *(one.validation for one in report.rounds)] if start else []


def _source(report: RunReport, results: Results) -> ModelScores | None:
    """The test slice of the model whose distribution the student learned: the proxy, an open teacher or its assistant.
    None where it learned from text alone."""
    if report.trust:
        name = report.trust.adapter
    elif report.white_box:
        name = report.white_box.assistant.adapter if report.white_box.assistant else OPEN_TEACHER
    else:
        return None
    return results.need(EVALUATE).models[name]


def _calibration(judged: TrustReport | None, proxy: ModelScores | None) -> Calibration | None:
    """Each held-out record's trust weight and the true KL there; None for a black box, or without a proxy."""
    if judged is None or proxy is None or proxy.record_kls is None or not judged.trust.tells_apart:
        return None
    return Calibration(weight=judged.trust.weights(proxy.sequence_logps, proxy.tokens), kl=proxy.record_kls)


def table(study: StudyConfig, arms: Sequence[ArmReport]) -> list[Row]:
    """A row an arm, at full size: each measure's mean over seeds, half its 95 % interval, and its difference to the
    study's reference, paired by seed."""
    rows = []
    for name in study.arms:
        seeds, reference = runs_of(arms, name), _reference(study, arms, name)
        row: Row = {"arm": name, "title": study.title(name), "group": study.group(name), "seeds": len(seeds)}
        for key, (_, measure) in MEASURES.items():
            row |= compared(key, measure, seeds, reference)
        rows.append(row)
    return rows


def benchmark_table(study: StudyConfig, arms: Sequence[ArmReport]) -> list[Row]:
    """Tables 1 and 2: a row an arm and model (its student, its proxy), with each task's score as in `table`, and the
    average over tasks. Empty until `proxykd evaluate` was given the study."""
    rows = []
    for name in study.arms:
        seeds, reference = runs_of(arms, name), _reference(study, arms, name)
        for model in ("proxy", "student"):
            tasks = list(dict.fromkeys(task for arm in seeds.values() for task in arm.benchmarks.get(model, {})))
            row: Row = {"arm": name, "title": study.title(name), "group": study.group(name), "model": model}
            for task in [*tasks, AVERAGE] if tasks else []:
                row |= compared(task, partial(_score, model, task), seeds, reference)
            if tasks:
                rows.append(row)
    return rows


def _reference(study: StudyConfig, arms: Sequence[ArmReport], name: str) -> BySeed:
    """What arm `name` is compared with; empty for the reference itself, and where there is none."""
    return runs_of(arms, study.reference) if name != study.reference else {}


def _score(model: str, task: str, arm: ArmReport) -> float | None:
    """Of one arm and seed; the average is over the tasks that it was asked."""
    scores: dict[str, TaskScore] = arm.benchmarks.get(model, {})
    if task == AVERAGE:
        return fmean(score.score for score in scores.values()) if scores else None
    return scores[task].score if task in scores else None


def costs(arms: Sequence[ArmReport]) -> list[StageHours]:
    """Table 3: mean device-hours of one stage (of one round, for align) at work, and the ratio to the warm-up's SFT."""
    hours: dict[str, list[float]] = {}
    for arm in arms:
        for stage in arm.stages:
            hours.setdefault(stage.stage, []).append(stage.device_hours)
    means = {stage: fmean(values) for stage, values in hours.items()}
    unit = means.get(WARMUP.name)
    return [
        StageHours(stage=stage, device_hours=mean, to_sft=mean / unit if unit else None)
        for stage, mean in means.items()
    ]
