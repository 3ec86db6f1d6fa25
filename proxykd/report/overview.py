"""What a run has found so far, finished or not, from its directory alone: the numbers of its page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from proxykd.config import RunConfig
from proxykd.data.corpus_store import SLICES, manifest
from proxykd.evaluation.inspection import has_inspected
from proxykd.report.run_report import ROUND_KEYS, finished_stages
from proxykd.runs.journal import Entry, replay
from proxykd.runs.storage import RunDirectory, stage_key

Facts = dict[str, Any]
COST_KEYS = ("seconds", "busy_seconds", "records", "tokens", "devices", "attempts", "started_at")
TRAINED = ("warmup", "align", "assist", "distil")


def overview(run: RunDirectory) -> Facts:
    """Every part is None, or empty, until its stage has finished; docs/api.md describes each."""
    config, journal = run.config(), replay(run.journal)
    stages = {stage_key(stage["stage"], stage["round"]): stage for stage in finished_stages(run)}
    results = {key: stage["result"] for key, stage in stages.items()}
    score, evaluation = results.get("score"), results.get("evaluate")
    return {
        "run": {
            "id": run.id,
            "name": config.name,
            "config_sha256": config.sha256,
            "started_at": journal[0]["time"] if journal else None,
            "finished_at": next((e["time"] for e in journal if e["event"] == "RUN_FINISHED"), None),
            "teacher": {"model": config.teacher.model, "local": config.teacher.local is not None},
            "proxy": config.proxy.source,
            "student": config.student.source,
            "source": config.distillation.source,
            "parameters": results["models"]["parameters"] if "models" in results else {},
        },
        "pipeline": pipeline(config, journal, stages),
        "corpus": _corpus(run) if "corpus" in results else None,
        "fidelity": fidelity(config, results),
        "rounds": [
            {**{key: result.get(key) for key in ROUND_KEYS}, "inspected": has_inspected(run, result["round"])}
            for result in _rounds(results)
        ],
        "steps": {key: as_columns(results[key]["steps"]) for key in results if key.partition("-")[0] in TRAINED},
        "soft_labels": score
        and {
            **{key: score[key] for key in ("k", "tokens", "bytes_per_token", "mass_at_k")},
            "share_mass_over_095": evaluation and evaluation["share_mass_over_095"],
        },
        "trust": score
        and {
            **{key: score[key] for key in ("adapter", "reduction", "mu", "gamma", "histogram")},
            "spearman_vs_true_kl": evaluation and evaluation["spearman_vs_true_kl"],
        },
        "student": _student(results.get("distil"), evaluation),
        "coordinators": [_coordinator(e) for e in journal if e["event"] == "EPOCH_CLAIMED"],
    }


def expected(config: RunConfig) -> list[tuple[str, int | None]]:
    """Every stage that the run may come to, in order; rounds may end earlier."""
    source = config.distillation.source
    rounds = range(1, config.alignment.rounds + 1) if source == "proxy" else ()
    return [
        ("models", None),
        *([("collect", None)] if config.corpus.prompts else []),
        ("corpus", None),
        *([("warmup", None)] if source == "proxy" else []),
        *(("align", number) for number in rounds),
        *([("score", None)] if config.uses_proxy else []),
        *([("complete", None)] if source in ("white_box", "assistant") else []),
        *([("assist", None)] if source == "assistant" else []),
        ("distil", None),
        ("evaluate", None),
    ]


def pipeline(config: RunConfig, journal: list[Entry], stages: Mapping[str, Facts]) -> list[Facts]:
    """Each stage as done, begun or ahead, with what it cost. Rounds that an early end left out are not in it."""
    begun = [stage_key(e["stage"], e["round"]) for e in journal if e["event"] == "STAGE_STARTED"]
    order = [(stage, number, stage_key(stage, number)) for stage, number in expected(config)]
    last = max((i for i, (*_, key) in enumerate(order) if key in begun or key in stages), default=-1)
    found = []
    for index, (stage, number, key) in enumerate(order):
        done = stages.get(key)
        state = "done" if done else "begun" if key in begun else "ahead"
        if state == "ahead" and index < last:
            continue
        cost = {name: done.get(name) for name in COST_KEYS} if done else {}
        found.append({"stage": stage, "round": number, "key": key, "state": state, **cost})
    return found


def fidelity(config: RunConfig, results: dict[str, Facts]) -> list[Facts]:
    """The proxy's way: base, warm-up, every round. `test` and `true_kl` come with the evaluation.

    A rejected round's own adapter is judged on the validation slice; what the test slice saw is the one in force.
    """
    warmup, evaluation = results.get("warmup"), results.get("evaluate")
    models = evaluation["models"] if evaluation else {}
    way: list[Facts] = []

    def add(label: str, model: str, validation: Facts | None, **facts: Any) -> None:
        measured = models.get(model, {})
        judged = {"test": measured.get("fidelity"), "true_kl": measured.get("true_kl")}
        way.append({"label": label, "adapter": model, "validation": validation, **judged, **facts})

    if warmup is None and "base" not in models:
        return way
    add("base", "base", warmup and warmup["base"], round=None)
    if warmup is None:
        return way
    add("warm-up", warmup["adapter"], warmup["validation"], round=0)
    for result in _rounds(results):
        judgement = {key: result[key] for key in ("decision", "reason")}
        add(f"round {result['round']}", result["adapter"], result["validation"], round=result["round"], **judgement)
    return way


def as_columns(steps: list[Facts]) -> dict[str, list[float | None]]:
    """Steps as a column a measure; each term's gradient norm as grad_<term>, None where it was not measured."""
    flat = [
        {**{k: v for k, v in step.items() if k != "grad_norms"}, **_named(step.get("grad_norms", {}))} for step in steps
    ]
    names = dict.fromkeys(name for step in flat for name in step)
    return {name: [step.get(name) for step in flat] for name in names}


def _named(norms: dict[str, float]) -> dict[str, float]:
    return {f"grad_{term}": value for term, value in norms.items()}


def _rounds(results: dict[str, Facts]) -> list[Facts]:
    return [result for key, result in results.items() if key.startswith("align-")]


def _corpus(run: RunDirectory) -> Facts:
    counts = manifest(run)
    return {key: counts[key] for key in ("records", *SLICES, "dropped", "truncated", "tokens")}


def _student(distil: Facts | None, evaluation: Facts | None) -> Facts | None:
    if distil is None:
        return None
    models = evaluation["models"] if evaluation else {}
    measured = {when: models.get(f"student_{when}", {}) for when in ("before", "after")}
    return {
        **{when: facts.get("fidelity") for when, facts in measured.items()},
        "true_kl": {when: facts.get("true_kl") for when, facts in measured.items()},
        **{key: distil[key] for key in ("loss_share", "grad_share", "curve")},
    }


def _coordinator(claim: Entry) -> Facts:
    return {key: claim.get(key) for key in ("epoch", "time", "host", "job")}
