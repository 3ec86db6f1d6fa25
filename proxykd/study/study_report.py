"""What a study found, in numbers, from its runs' own reports."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from functools import partial
from statistics import fmean, stdev
from typing import Any

from proxykd.evaluation.standard_errors import student_t
from proxykd.losses.trust import Trust, all_alike
from proxykd.report.run_report import finished_stages, git_revision, hardware
from proxykd.runs.storage import RunDirectory, read_json
from proxykd.study.studies import PROXY_KD, StudyConfig, StudyDirectory

Facts = dict[str, Any]
Measure = Callable[[Facts], float | None]

MEASURES: dict[str, tuple[str, Measure]] = {
    "held_out_nll": ("NLL a token", lambda arm: arm["student"]["held_out_nll"]),
    "true_kl": ("true KL", lambda arm: (arm["sealed_teacher"] or {}).get("student")),
    "top1_agreement": ("top-1", lambda arm: arm["student"]["top1_agreement"]),
    "sequence_agreement": ("whole sequence", lambda arm: arm["student"].get("sequence_agreement")),
    "source_nll": ("its source's NLL", lambda arm: arm["source"] and arm["source"]["held_out_nll"]),
    "source_true_kl": ("its source's true KL", lambda arm: (arm["sealed_teacher"] or {}).get("source")),
}
"""What each arm is compared by, on the test slice. A student's source is the model whose distribution it learned."""


def build_study_report(directory: StudyDirectory) -> Facts:
    """All numbers that a reader may rely on: every arm and seed, the table of means, what a stage costs."""
    study = directory.study()
    arms = [_arm(directory, arm) for arm in directory.arms()]
    return {
        "study": {"id": directory.id, "name": study.name, "seeds": list(study.seeds)}
        | {"git_revision": git_revision(), "hardware": hardware()},
        "arms": arms,
        "table": table(study, arms),
        "benchmarks": benchmark_table(study, arms),
        "costs": costs(arms),
    }


def known_measures(report: Facts) -> dict[str, str]:
    """The measures that any arm has, with their titles; one that is 0 in all of them tells nothing."""
    known = {key for row in report["table"] for key in MEASURES if row[key]}
    return {key: title for key, (title, _) in MEASURES.items() if key in known}


def known_tasks(report: Facts) -> list[str]:
    """The benchmarks that any arm has scores of, and their average; empty where there are none."""
    known = {task: None for arm in report["arms"] for scores in arm["benchmarks"].values() for task in scores}
    return [*known, AVERAGE] if known else []


def as_csv(rows: Sequence[Facts]) -> bytes:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_markdown(report: Facts) -> str:
    """The table of arms, for a document: means, half 95 % intervals, differences to the full method in brackets."""
    measures = known_measures(report)
    lines = ["| arm | " + " | ".join(measures.values()) + " |", "|---" * (1 + len(measures)) + "|"]
    lines += [
        f"| {row['title']} | " + " | ".join(_cell(row, key) for key in measures) + " |" for row in report["table"]
    ]
    return "\n".join(lines) + "\n"


def _cell(row: Facts, key: str) -> str:
    if row[key] is None:
        return ""
    interval, difference = row[f"{key}_ci"], row.get(f"{key}_difference")
    text = f"{row[key]:.4f}" + ("" if interval is None else f" ± {interval:.4f}")
    if difference is None:
        return text
    interval = row[f"{key}_difference_ci"]
    return f"{text} ({difference:+.4f}" + ("" if interval is None else f" ± {interval:.4f}") + ")"


def flat(arm: Facts) -> Facts:
    """One arm and seed as a row of a table."""
    measures = {key: measure(arm) for key, (_, measure) in MEASURES.items()}
    return {
        **{key: arm[key] for key in ("name", "seed", "run")},
        **measures,
        **{key: arm[key] for key in ("device_hours", "own_device_hours")},
    }


def _arm(directory: StudyDirectory, arm: Any) -> Facts:
    """One arm with one seed, in the words of docs/design.md, report.json."""
    run = directory.run(arm)
    report = read_json(run.report)
    sealed, proxy, source = report["sealed_teacher"], report["proxy"], _source(run, report)
    kls = sealed and {
        "student": sealed["kl_teacher_student"]["after"]["kl"],
        "source": source and source["true_kl"]["kl"],
    }
    made = [stage for stage in finished_stages(run) if "adopted_from" not in stage]
    return {
        "name": arm.name,
        "seed": arm.seed,
        "run": run.id,
        "proxy": proxy and proxy["aligned"],
        "source": source and source["fidelity"],
        "student": report["student"]["after"],
        "student_before": report["student"]["before"],
        "curve": report["student"]["curve"],
        "sealed_teacher": kls,
        "trust": report["trust"],
        "calibration": _calibration(report["trust"], source),
        "alignment": _alignment(report),
        "mass": report["soft_labels"] and report["soft_labels"]["share_mass_over_095"],
        "parameters": read_json(run.stages / "models.json")["result"]["parameters"],
        "rounds": report["rounds"],
        "benchmarks": report["benchmarks"],
        "device_hours": sum(stage["device_hours"] for stage in report["stages"]),
        "own_device_hours": sum(stage["busy_seconds"] * stage["devices"] / 3600 for stage in made),
        "stages": report["stages"],
    }


def _alignment(report: Facts) -> list[Facts]:
    """The proxy's validation fidelity: base, warm-up, every round. Empty where nothing was aligned."""
    if not report["proxy"] or not report["proxy"]["validation"]:
        return []
    validation = report["proxy"]["validation"]
    return [validation["base"], validation["warmup"], *(entry["validation"] for entry in report["rounds"])]


def _source(run: RunDirectory, report: Facts) -> Facts | None:
    """The test slice of the model whose distribution the student learned: the proxy, an open teacher or its assistant.
    None where it learned from text alone."""
    if report["trust"]:
        name = report["trust"]["adapter"]
    elif report["white_box"]:
        assistant = report["white_box"]["assistant"]
        name = assistant["adapter"] if assistant else "white_box"
    else:
        return None
    measured: Facts = read_json(run.stages / "evaluate.json")["result"]["models"][name]
    return measured


def _calibration(trust: Facts | None, proxy: Facts | None) -> Facts | None:
    """Each held-out record's trust weight and the true KL there; None for a black box, or without a proxy."""
    if not trust or not proxy or "record_kls" not in proxy or all_alike(trust["mu"], trust["gamma"]):
        return None
    weights = Trust.of(trust).weights(proxy["sequence_logps"], proxy["tokens"])
    return {"weight": weights, "kl": proxy["record_kls"]}


def table(study: StudyConfig, arms: Sequence[Facts]) -> list[Facts]:
    """A row an arm: each measure's mean over seeds, half its 95 % interval, and its difference to Proxy-KD, paired by
    seed."""
    by_arm = _by_arm(study, arms)
    rows = []
    for name, seeds in by_arm.items():
        row: Facts = {"arm": name, "title": study.title(name), "group": study.group(name), "seeds": len(seeds)}
        for key, (_, measure) in MEASURES.items():
            row |= _compared(key, measure, seeds, by_arm.get(PROXY_KD) if name != PROXY_KD else None)
        rows.append(row)
    return rows


AVERAGE = "average"


def benchmark_table(study: StudyConfig, arms: Sequence[Facts]) -> list[Facts]:
    """Tables 1 and 2: a row an arm and model (its student, its proxy), with each task's score as in `table`, and the
    average over tasks. Empty until `proxykd evaluate` was given the study."""
    rows = []
    by_arm = _by_arm(study, arms)
    for name, seeds in by_arm.items():
        for model in ("proxy", "student"):
            tasks = list(dict.fromkeys(task for arm in seeds.values() for task in arm["benchmarks"].get(model, {})))
            row: Facts = {"arm": name, "title": study.title(name), "group": study.group(name), "model": model}
            for task in [*tasks, AVERAGE] if tasks else []:
                full = by_arm.get(PROXY_KD) if name != PROXY_KD else None
                row |= _compared(task, partial(_score, model, task), seeds, full)
            if tasks:
                rows.append(row)
    return rows


def _score(model: str, task: str, arm: Facts) -> float | None:
    """Of one arm and seed; the average is over the tasks that it was asked."""
    scores = arm["benchmarks"].get(model, {})
    if task == AVERAGE:
        return fmean(score["score"] for score in scores.values()) if scores else None
    return scores[task]["score"] if task in scores else None


def _by_arm(study: StudyConfig, arms: Sequence[Facts]) -> dict[str, dict[int, Facts]]:
    return {name: {arm["seed"]: arm for arm in arms if arm["name"] == name} for name in study.arms}


def _compared(key: str, measure: Measure, seeds: dict[int, Facts], full: dict[int, Facts] | None) -> Facts:
    """A measure over an arm's seeds, and against the full method's where that is another arm."""
    values = {seed: value for seed, arm in seeds.items() if (value := measure(arm)) is not None}
    cells: Facts = {}
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


def costs(arms: Sequence[Facts]) -> list[Facts]:
    """Table 3: mean device-hours of one stage (of one round, for align) at work, and the ratio to the warm-up's SFT."""
    hours: dict[str, list[float]] = {}
    for arm in arms:
        for stage in arm["stages"]:
            hours.setdefault(stage["stage"], []).append(stage["device_hours"])
    means = {stage: fmean(values) for stage, values in hours.items()}
    unit = means.get("warmup")
    return [
        {"stage": stage, "device_hours": mean, "to_sft": mean / unit if unit else None} for stage, mean in means.items()
    ]
