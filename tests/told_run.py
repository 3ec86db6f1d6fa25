"""A run directory as a run leaves it, whole or up to a stage, without a model: what pages and readers are tested on."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from actors.telemetry.events import EventLog
from proxykd.data.corpus_store import write_rows_shard
from proxykd.data.pairs import SIDES
from proxykd.data.soft_label_statistics import label_statistics
from proxykd.data.soft_labels import LabelSource, SoftLabels, write_shard_file
from proxykd.evaluation.inspection import write_inspected
from proxykd.report.overview import expected
from proxykd.runs.journal import Journal
from proxykd.runs.storage import RunDirectory, stage_key, write_json, write_shard
from proxykd.text.tokenising import ids_hash
from tests.small_run import run_config

HOSTILE = '<script>document.title = "taken over"</script><img src=x onerror="document.title=1">'
"""What a completion may hold."""
RECORDS = 40
SOURCE = LabelSource("r01-aaaaaaaa", "t", 100, 4)


class Letters:
    """A tokenizer of one letter a token."""

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))


def tell_run(runs_dir: Path, rounds: int = 2, until: str | None = None, name: str = "told") -> RunDirectory:
    """Every stage up to and including `until` is done, or all, and the run finished."""
    config = run_config("model", str(runs_dir), name=name, alignment={"rounds": rounds, "max_new_tokens": 12})
    run = RunDirectory.create(config)
    journal, log = Journal(run.journal, host="here", job=None, cluster_pid=None), EventLog(run)
    log.emit("run_started", run=run.id, epoch=journal.epoch)
    for stage, number in expected(config):
        journal.append("STAGE_STARTED", stage=stage, round=number)
        log.emit("stage_started", stage=stage, round=number)
        result = RESULTS[stage](run, number)
        cost = {"stage": stage, "round": number, "seconds": 10.0, "started_at": 0.0, "attempts": 1, "busy_seconds": 8.0}
        cost |= {"records": RECORDS, "tokens": 400, "devices": 2}
        write_json(run.stages / f"{stage_key(stage, number)}.json", {**cost, "result": result})
        journal.append("STAGE_FINISHED", stage=stage, round=number)
        log.emit("stage_finished", stage=stage, round=number, seconds=10.0)
        if stage_key(stage, number) == until:
            return run
    journal.append("RUN_FINISHED", adapter=None)
    log.emit("finished", report="")
    return run


def fidelity(nll: float) -> dict[str, Any]:
    return {
        "held_out_nll": nll, "stderr": 0.1, "top1_agreement": 0.4, "sequence_agreement": 0.0, "records": 5, "prompts": 5,
        "tokens": 60,
    }  # fmt: skip


def adapter_of(number: int) -> str:
    return f"r{number:02d}-aaaaaaaa" if number else "warmup-aaaaaaaa"


def _corpus(run: RunDirectory, _: int | None) -> dict[str, Any]:
    slices = dict.fromkeys(("validation", "test", "warmup", "alignment", "distillation"), RECORDS // 5)
    rows = [_row(i) for i in range(slices["distillation"])]
    write_rows_shard(run.corpus / "distillation" / "shard-00000.parquet", rows)
    counts = {"records": RECORDS, **slices, "dropped": {"empty": 2}, "truncated": 0, "tokens": 400, "tokenizer": "t"}
    write_json(run.corpus / "manifest.json", counts)
    return {"records": RECORDS}


def _row(i: int) -> dict[str, Any]:
    prompt, completion = f"Say {i}.", HOSTILE if i == 0 else f"It is {i}."
    ids = {"prompt_ids": list(map(ord, prompt)), "completion_ids": list(map(ord, completion))}
    return {"id": f"d{i:03d}", **ids, "prompt": prompt, "completion": completion}


def _warmup(run: RunDirectory, _: int | None) -> dict[str, Any]:
    steps = [{"nll": 4.0 - 0.1 * i, "grad_norm": 1.0, "grad_norms": {}} for i in range(5)]
    return {
        "nll_loss": 3.5, "base": fidelity(4.0), "validation": fidelity(3.6), "steps": steps, "adapter": adapter_of(0),
    }  # fmt: skip


def _align(run: RunDirectory, number: int | None) -> dict[str, Any]:
    assert number is not None
    pairs = [{**_row(i), "rejected_ids": list(map(ord, f"No {i}!"))} for i in range(12)]
    before = {side: [[-2.0] * len(pair[key]) for pair in pairs] for side, key in SIDES.items()}
    after = {
        "chosen": [[-2.0 + 0.1 * (i - 3)] * len(pair["completion_ids"]) for i, pair in enumerate(pairs)],
        "rejected": [[-2.5] * len(pair["rejected_ids"]) for pair in pairs],
    }
    write_inspected(run, number, pairs, before, after, Letters())
    steps = [
        {"nll": 3.0, "dpo": 0.69, "correct": 0.5, "margin": 0.1 * i, "grad_norm": 1.0, "grad_norms": {"nll": 1.0}}
        for i in range(4)
    ]
    nll = 3.6 - 0.05 * number
    return {
        "round": number, "reference_adapter": adapter_of(number - 1), "adapter": adapter_of(number), "pairs": 12,
        "dropped": {"equal": 1}, "samples": 13, "truncated": 2,
        "decision": "promote", "reason": f"validation NLL {nll + 0.05:.2f} -> {nll:.2f}",
        "validation": fidelity(nll), "nll_loss": nll, "dpo_loss": 0.6, "dpo_accuracy": 0.5, "margin_mean": 0.2,
        "dpo_accuracy_after": 0.75, "margin_mean_after": 0.4, "pairs_after": 12,
        "validation_change": {"nll": -0.05, "stderr": 0.01, "prompts": 5},
        "step0_margin_max_abs": 0.0, "parity_mean_abs": 1e-5, "parity_max_abs": 2e-5, "steps": steps,
        "nll_grad_norm": 1.0, "dpo_grad_norm": 1.0, "seconds": {"sample": 1.0, "train": 2.0},
    }  # fmt: skip


def _score(run: RunDirectory, _: int | None) -> dict[str, Any]:
    labels = []
    for i in range(RECORDS // 5):
        row = _row(i)
        n = len(row["completion_ids"])
        logps = np.full((n, 4), math.log(0.2))
        actual = np.full(n, -0.5 - 0.1 * i)
        hashed = ids_hash(row["completion_ids"])
        tail = np.full(n, math.log(0.2))
        labels.append(SoftLabels(row["id"], hashed, np.tile(np.arange(4), (n, 1)), logps, tail, actual, actual.sum()))
    path = run.soft_labels(SOURCE.adapter) / "shard-00000.parquet"
    write_shard(path, lambda target: write_shard_file(target, labels, SOURCE), {"records": len(labels)})
    return label_statistics([path], SOURCE, "sequence_sum")


def _distil(run: RunDirectory, _: int | None) -> dict[str, Any]:
    curve = [{**fidelity(5.0 - 0.2 * i), "step": 4 * i, "records": 16 * i} for i in range(3)]
    steps = [{"nll": 4.0, "kl": 0.5, "grad_norm": 1.0, "grad_norms": {"nll": 1.0, "kl": 0.4}} for _ in range(8)]
    return {
        "loss_share": {"nll": 0.9, "kl": 0.1}, "grad_share": {"nll": 0.7, "kl": 0.3}, "curve": curve, "steps": steps,
    }  # fmt: skip


def _evaluate(run: RunDirectory, _: int | None) -> dict[str, Any]:
    names = ["base", "student_before", "student_after", *(path.stem for path in run.stages.glob("align-*"))]
    models = {name: {"fidelity": fidelity(4.0)} for name in names}
    for number in range(run.config().alignment.rounds + 1):
        kl = {"kl": 0.5 - 0.02 * number, "stderr": 0.01, "tokens": 60}
        models[adapter_of(number)] = {"fidelity": fidelity(3.7 - 0.05 * number), "true_kl": kl}
    shares = {"k": list(range(1, 51)), "share": [k / 60 for k in range(1, 51)]}
    return {"models": models, "share_mass_over_095": shares, "spearman_vs_true_kl": -0.4}


RESULTS = {
    "models": lambda run, _: {"parameters": {"proxy": 1000, "student": 500, "teacher": None}},
    "corpus": _corpus,
    "warmup": _warmup,
    "align": _align,
    "score": _score,
    "distil": _distil,
    "evaluate": _evaluate,
}


def many_events(run: RunDirectory, count: int) -> None:
    """Events as plain files: writing each as the run does, durably, would take minutes."""
    run.events.mkdir(parents=True, exist_ok=True)
    for number in range(1, count + 1):
        event = {"time": 1.0e9 + number, "event": "warning", "message": f"number {number}"}
        (run.events / f"{number:06d}.jsonl").write_text(json.dumps(event) + "\n")
