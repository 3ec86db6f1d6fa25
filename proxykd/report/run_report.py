"""report.json of a finished run (docs/design.md, report.json), gathered from the stages' stored results."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from proxykd.data.corpus_store import SLICES, manifest
from proxykd.runs.journal import replay
from proxykd.runs.storage import RunDirectory, read_json, stage_key, write_json

Facts = dict[str, Any]
ROUND_KEYS = (
    "round", "adapter", "reference_adapter", "pairs", "dropped", "samples", "truncated", "nll_loss", "dpo_loss",
    "nll_grad_norm", "dpo_grad_norm", "dpo_accuracy", "margin_mean", "dpo_accuracy_after", "margin_mean_after",
    "pairs_after", "step0_margin_max_abs", "parity_mean_abs", "parity_max_abs", "validation", "validation_change",
    "seconds", "decision", "reason",
)  # fmt: skip


def write_report(run: RunDirectory, stop_reason: str) -> Facts:
    report = build_report(run, stop_reason)
    write_json(run.report, report)
    return report


def finished_stages(run: RunDirectory) -> list[Facts]:
    """The stages' markers in the order in which they began, by the journal: clocks jump."""
    began: list[str] = []
    for entry in replay(run.journal):
        if entry["event"] == "STAGE_STARTED":
            key = stage_key(entry["stage"], entry["round"])
            began += [key] if key not in began else []
    stages: list[Facts] = [read_json(path) for key in began if (path := run.stages / f"{key}.json").exists()]
    return stages


def build_report(run: RunDirectory, stop_reason: str) -> Facts:
    """Everything that a reader of report.json may rely on; `rounds` and `stages` in the order they ran."""
    config = run.config()
    stages = finished_stages(run)
    results = {stage_key(stage["stage"], stage["round"]): stage["result"] for stage in stages}
    rounds = [stage["result"] for stage in stages if stage["stage"] == "align"]
    distil, evaluation = results["distil"], results["evaluate"]
    score, models = results.get("score"), evaluation["models"]
    corpus = manifest(run)
    journal = replay(run.journal)
    return {
        "run": {
            "id": run.id,
            "name": config.name,
            "config_sha256": config.sha256,
            "git_revision": git_revision(),
            "started_at": _iso(journal[0]["time"]),
            "finished_at": _iso(datetime.now(UTC).timestamp()),
            "hardware": hardware(),
        },
        "teacher": {
            "model": config.teacher.model,
            "parameters": results["models"]["parameters"].get("teacher"),
            "local": config.teacher.local is not None,
        },
        "collection": results.get("collect", {}).get("summary"),
        "corpus": {key: corpus[key] for key in ("records", *SLICES, "dropped", "truncated", "tokens")},
        "stages": [_stage(stage) for stage in stages],
        "rounds": [{key: result.get(key) for key in ROUND_KEYS} for result in rounds],
        "stop_reason": stop_reason,
        "proxy": score and _proxy(models, score["adapter"], results.get("warmup")),
        "soft_labels": score
        and {
            **{key: score[key] for key in ("k", "tokens", "bytes_per_token", "mass_at_k")},
            "share_mass_over_095": evaluation["share_mass_over_095"],
        },
        "trust": score
        and {
            **{key: score[key] for key in ("adapter", "reduction", "mu", "gamma", "histogram")},
            "spearman_vs_true_kl": evaluation["spearman_vs_true_kl"],
        },
        "white_box": _white_box(models, results.get("assist")),
        "student": {
            "before": models["student_before"]["fidelity"],
            "after": models["student_after"]["fidelity"],
            **{key: distil[key] for key in ("loss_share", "grad_share", "curve")},
        },
        "grey_box": _grey_box(models),
        "sealed_teacher": sealed_teacher(models, results.get("warmup"), rounds, results.get("assist")),
        "benchmarks": {},
    }


def _grey_box(models: Facts) -> Facts | None:
    """The KL from what a grey box tells of its distribution, at least, of every model on the test slice."""
    told = {name: facts["teacher_kl"] for name, facts in models.items() if "teacher_kl" in facts}
    return told or None


def _proxy(models: Facts, aligned: str, warmup: Facts | None) -> Facts:
    """The proxy whose soft labels the student learned: the base itself where it was not aligned."""
    return {
        "base": models["base"]["fidelity"],
        "warmup": warmup and models[warmup["adapter"]]["fidelity"],
        "aligned": models[aligned]["fidelity"],
        "validation": warmup and {"base": warmup["base"], "warmup": warmup["validation"]},
    }


def _white_box(models: Facts, assist: Facts | None) -> Facts | None:
    """The open teacher of a white-box baseline, and its assistant: how close they are to the black-box teacher."""
    if "white_box" not in models:
        return None
    return {
        "teacher": models["white_box"]["fidelity"],
        "assistant": assist and {"adapter": assist["adapter"], **models[assist["adapter"]]["fidelity"]},
    }


def sealed_teacher(models: Facts, warmup: Facts | None, rounds: list[Facts], assist: Facts | None) -> Facts | None:
    """The true KL from the teacher to the proxy after each round (warm-up as round 0), to the student, and to a
    white-box baseline's models; None for a black box."""
    student = {when: models[f"student_{when}"].get("true_kl") for when in ("before", "after")}
    if student["after"] is None:
        return None
    by_round = []
    if warmup is not None:
        in_force = warmup["adapter"]
        by_round.append({"adapter": in_force, "round": 0, **models[in_force]["true_kl"]})
    for result in rounds:
        in_force = result["adapter"] if result["decision"] == "promote" else in_force
        by_round.append({"adapter": in_force, "round": result["round"], **models[in_force]["true_kl"]})
    base = models["base"]["true_kl"] if "base" in models else None
    opened = None
    if "white_box" in models:
        assistant = assist and models[assist["adapter"]]["true_kl"]
        opened = {"teacher": models["white_box"]["true_kl"], "assistant": assistant}
    return {
        "kl_teacher_proxy": by_round,
        "kl_teacher_student": student,
        "kl_teacher_base": base,
        "kl_teacher_white_box": opened,
    }


def _stage(stage: Facts) -> Facts:
    facts = {key: stage[key] for key in ("stage", "round", "seconds", "records", "tokens", "devices")}
    busy = stage.get("busy_seconds", stage["seconds"])  # a stage of an earlier version has the one alone
    return {**facts, "busy_seconds": busy, "device_hours": busy * stage["devices"] / 3600}


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def git_revision() -> str | None:
    """The commit that the code was checked out at, or None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def hardware() -> Facts:
    """The machine that wrote the report: processor, cores that it may use, memory, GPUs."""
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory, 1),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }
