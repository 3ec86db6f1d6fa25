"""What a study found, in numbers, from its runs' own reports."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from functools import partial
from statistics import fmean, stdev

from proxykd.evaluation.benchmarks import TaskScore
from proxykd.evaluation.measures import Fidelity
from proxykd.evaluation.standard_errors import student_t
from proxykd.report.blocks import TrustReport
from proxykd.report.provenance import git_revision, hardware
from proxykd.report.report_model import RunReport, read_report
from proxykd.report.run_report import stage_cost
from proxykd.stages.evaluate import EVALUATE, OPEN_TEACHER, ModelScores
from proxykd.stages.models import MODELS
from proxykd.stages.results import Results
from proxykd.stages.warmup import WARMUP
from proxykd.study.presets import PROXY_KD
from proxykd.study.studies import Arm, StudyConfig, StudyDirectory
from proxykd.study.study_model import ArmKl, ArmReport, Calibration, Row, StageHours, StudyFacts, StudyReport

Measure = Callable[[ArmReport], float | None]

MEASURES: dict[str, tuple[str, Measure]] = {
    "held_out_nll": ("NLL a token", lambda arm: arm.student.held_out_nll),
    "true_kl": ("true KL", lambda arm: arm.sealed_teacher.student if arm.sealed_teacher else None),
    "top1_agreement": ("top-1", lambda arm: arm.student.top1_agreement),
    "sequence_agreement": ("whole sequence", lambda arm: arm.student.sequence_agreement),
    "source_nll": ("its source's NLL", lambda arm: arm.source.held_out_nll if arm.source else None),
    "source_true_kl": ("its source's true KL", lambda arm: arm.sealed_teacher.source if arm.sealed_teacher else None),
}
"""What each arm is compared by, on the test slice. A student's source is the model whose distribution it learned."""


def build_study_report(directory: StudyDirectory) -> StudyReport:
    """All numbers that a reader may rely on: every arm and seed, the table of means, what a stage costs."""
    study = directory.study()
    arms = [_arm(directory, arm) for arm in directory.arms()]
    return StudyReport(
        study=StudyFacts(
            id=directory.id,
            name=study.name,
            seeds=list(study.seeds),
            git_revision=git_revision(),
            hardware=hardware(),
        ),
        arms=arms,
        table=table(study, arms),
        benchmarks=benchmark_table(study, arms),
        costs=costs(arms),
    )


def known_measures(report: StudyReport) -> dict[str, str]:
    """The measures that any arm has, with their titles; one that is 0 in all of them tells nothing."""
    known = {key for row in report.table for key in MEASURES if row[key]}
    return {key: title for key, (title, _) in MEASURES.items() if key in known}


def known_tasks(report: StudyReport) -> list[str]:
    """The benchmarks that any arm has scores of, and their average; empty where there are none."""
    known = {task: None for arm in report.arms for scores in arm.benchmarks.values() for task in scores}
    return [*known, AVERAGE] if known else []


def as_csv(rows: Sequence[Row]) -> bytes:
    """A table with every column that any of the rows has."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_markdown(report: StudyReport) -> str:
    """The table of arms, for a document: means, half 95 % intervals, differences to the full method in brackets."""
    measures = known_measures(report)
    lines = ["| arm | " + " | ".join(measures.values()) + " |", "|---" * (1 + len(measures)) + "|"]
    lines += [f"| {row['title']} | " + " | ".join(_cell(row, key) for key in measures) + " |" for row in report.table]
    return "\n".join(lines) + "\n"


def _cell(row: Row, key: str) -> str:
    if row[key] is None:
        return ""
    interval, difference = row[f"{key}_ci"], row.get(f"{key}_difference")
    text = f"{row[key]:.4f}" + ("" if interval is None else f" ± {interval:.4f}")
    if difference is None:
        return text
    interval = row[f"{key}_difference_ci"]
    return f"{text} ({difference:+.4f}" + ("" if interval is None else f" ± {interval:.4f}") + ")"


def flat(arm: ArmReport) -> Row:
    """One arm and seed as a row of a table."""
    measures = {key: measure(arm) for key, (_, measure) in MEASURES.items()}
    names = {"name": arm.name, "seed": arm.seed, "run": arm.run}
    return {**names, **measures, "device_hours": arm.device_hours, "own_device_hours": arm.own_device_hours}


def _arm(directory: StudyDirectory, arm: Arm) -> ArmReport:
    """One arm with one seed, in the words of docs/design.md, report.json."""
    run = directory.run(arm)
    report, results = read_report(run), Results.read(run)
    source = _source(report, results)
    made = [stage_cost(done) for done in results.stages if done.adopted_from is None]
    return ArmReport(
        name=arm.name,
        seed=arm.seed,
        run=run.id,
        proxy=report.proxy.aligned if report.proxy else None,
        source=source.fidelity if source else None,
        student=report.student.after,
        student_before=report.student.before,
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
    """A row an arm: each measure's mean over seeds, half its 95 % interval, and its difference to Proxy-KD, paired by
    seed."""
    by_arm = _by_arm(study, arms)
    rows = []
    for name, seeds in by_arm.items():
        row: Row = {"arm": name, "title": study.title(name), "group": study.group(name), "seeds": len(seeds)}
        for key, (_, measure) in MEASURES.items():
            row |= _compared(key, measure, seeds, by_arm.get(PROXY_KD) if name != PROXY_KD else None)
        rows.append(row)
    return rows


AVERAGE = "average"


def benchmark_table(study: StudyConfig, arms: Sequence[ArmReport]) -> list[Row]:
    """Tables 1 and 2: a row an arm and model (its student, its proxy), with each task's score as in `table`, and the
    average over tasks. Empty until `proxykd evaluate` was given the study."""
    rows = []
    by_arm = _by_arm(study, arms)
    for name, seeds in by_arm.items():
        for model in ("proxy", "student"):
            tasks = list(dict.fromkeys(task for arm in seeds.values() for task in arm.benchmarks.get(model, {})))
            row: Row = {"arm": name, "title": study.title(name), "group": study.group(name), "model": model}
            for task in [*tasks, AVERAGE] if tasks else []:
                full = by_arm.get(PROXY_KD) if name != PROXY_KD else None
                row |= _compared(task, partial(_score, model, task), seeds, full)
            if tasks:
                rows.append(row)
    return rows


def _score(model: str, task: str, arm: ArmReport) -> float | None:
    """Of one arm and seed; the average is over the tasks that it was asked."""
    scores: dict[str, TaskScore] = arm.benchmarks.get(model, {})
    if task == AVERAGE:
        return fmean(score.score for score in scores.values()) if scores else None
    return scores[task].score if task in scores else None


def _by_arm(study: StudyConfig, arms: Sequence[ArmReport]) -> dict[str, dict[int, ArmReport]]:
    return {name: {arm.seed: arm for arm in arms if arm.name == name} for name in study.arms}


def _compared(key: str, measure: Measure, seeds: dict[int, ArmReport], full: dict[int, ArmReport] | None) -> Row:
    """A measure over an arm's seeds, and against the full method's where that is another arm."""
    values = {seed: value for seed, arm in seeds.items() if (value := measure(arm)) is not None}
    cells: Row = {}
    cells[key], cells[f"{key}_ci"] = mean_and_interval(list(values.values()))
    if full is not None:
        pairs = [(value, measure(full[seed])) for seed, value in values.items()]
        differences = [mine - theirs for mine, theirs in pairs if theirs is not None]
        cells[f"{key}_difference"], cells[f"{key}_difference_ci"] = mean_and_interval(differences)
    return cells


def mean_and_interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """The mean, and half the 95 % confidence interval by Student's t; None for fewer than one, or two, values."""
    if not values:
        return None, None
    if len(values) == 1:
        return values[0], None
    t = student_t(0.975, len(values) - 1)
    return fmean(values), t * stdev(values) / math.sqrt(len(values))


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
