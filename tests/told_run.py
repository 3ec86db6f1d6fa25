"""A run directory as a run leaves it, whole or up to a stage, without a model: what pages and readers are tested on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from actors.telemetry.event_types import RunFinished, RunStarted, StageFinished, StageStarted
from actors.telemetry.events import EventLog
from proxykd.data.corpus_store import write_rows_shard
from proxykd.data.pairs import SIDES
from proxykd.data.soft_labels import LabelSource, SoftLabels, write_label_shard
from proxykd.evaluation.inspection import write_inspected
from proxykd.evaluation.measures import Difference
from proxykd.evaluation.soft_label_statistics import label_statistics
from proxykd.runs.adapter_names import BASE
from proxykd.runs.journal import Journal
from proxykd.runs.run_directory import RunDirectory, stage_key
from proxykd.runs.storage import write_json
from proxykd.stages.align import RoundResult
from proxykd.stages.corpus import CorpusResult
from proxykd.stages.distil import DistilResult
from proxykd.stages.evaluate import STUDENT_AFTER, STUDENT_BEFORE, STUDENT_OFFLINE, STUDENT_SFT, EvaluationResult
from proxykd.stages.models import ModelsResult
from proxykd.stages.on_policy import OnPolicyResult
from proxykd.stages.score import LabelsResult
from proxykd.stages.sft import SftResult
from proxykd.stages.stage import Result
from proxykd.stages.table import expected
from proxykd.stages.warmup import WarmupResult
from proxykd.text.tokenising import ids_hash
from tests.small_run import run_config
from tests.stage_results import adapter_of, aligned, distilled, evaluated, finished, learned, scores, warmed_up

HOSTILE = '<script>document.title = "taken over"</script><img src=x onerror="document.title=1">'
"""What a completion may hold."""
FRAME = "<|user|>\n", "<|end|>\n<|assistant|>\n"
"""What the template puts around a prompt."""
RECORDS = 40
SOURCE = LabelSource("r01-aaaaaaaa", "t", 100, 4)


class Letters:
    """A tokenizer of one letter a token."""

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))


def tell_run(
    runs_dir: Path, rounds: int = 2, until: str | None = None, name: str = "told", **sections: Any
) -> RunDirectory:
    """A run of its own: every stage up to and including `until` is done, or all, and the run finished."""
    sections |= {"name": name, "alignment": {"rounds": rounds, "max_new_tokens": 12}}
    return tell(RunDirectory.create(run_config("model", str(runs_dir), **sections)), until)


def tell(run: RunDirectory, until: str | None = None) -> RunDirectory:
    """The same of a run that is there."""
    journal, log = Journal(run.journal, host="here", job=None, cluster_pid=None), EventLog(run)
    log.emit(RunStarted(run.id, journal.epoch))
    for stage, number in expected(run.config()):
        journal.append("STAGE_STARTED", stage=stage.name, round=number)
        log.emit(StageStarted(stage.name, number))
        stage.write(run, finished(stage, RESULTS[stage.name](run, number), number, records=RECORDS, tokens=400))
        journal.append("STAGE_FINISHED", stage=stage.name, round=number)
        log.emit(StageFinished(stage.name, number, seconds=10.0, busy_seconds=10.0))
        if stage_key(stage.name, number) == until:
            return run
    journal.append("RUN_FINISHED", adapter=None)
    log.emit(RunFinished(""))
    return run


def _corpus(run: RunDirectory, _: int | None) -> CorpusResult:
    corpus = run.config().corpus
    slices = dict.fromkeys(corpus.slices, RECORDS // 5)
    rows = [_row(i) for i in range(RECORDS // 5)]
    write_rows_shard(run.corpus / corpus.slice_for("distillation") / "shard-00000.parquet", rows)
    counts = {"records": RECORDS, **slices, "dropped": {"empty": 2}, "truncated": 0, "tokens": 400, "tokenizer": "t"}
    write_json(run.corpus / "manifest.json", counts | {"beyond_limit": 7 if corpus.training_limit else 0})
    return CorpusResult(records=RECORDS)


def _row(i: int) -> dict[str, Any]:
    prompt, completion = f"Say {i}.", HOSTILE if i == 0 else f"It is {i}."
    rendered = FRAME[0] + prompt + FRAME[1]
    ids = {"prompt_ids": list(map(ord, rendered)), "completion_ids": list(map(ord, completion))}
    return {"id": f"d{i:03d}", **ids, "prompt": prompt, "completion": completion}


def _warmup(run: RunDirectory, _: int | None) -> WarmupResult:
    steps = [{"nll": 4.0 - 0.1 * i, "grad_norm": 1.0, "grad_norms": {}} for i in range(5)]
    return warmed_up(adapter_of(0), steps=steps)


def _align(run: RunDirectory, number: int | None) -> RoundResult:
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
    return aligned(number, adapter_of(number), steps=steps)


def _score(run: RunDirectory, _: int | None) -> LabelsResult:
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
    write_label_shard(path, labels, SOURCE)
    return LabelsResult(**label_statistics([path], SOURCE, "sequence_sum").model_dump(), segments=0)


def _distil(run: RunDirectory, _: int | None) -> DistilResult:
    steps = [{"nll": 4.0, "kl": 0.5, "grad_norm": 1.0, "grad_norms": {"nll": 1.0, "kl": 0.4}} for _ in range(8)]
    return distilled(steps=steps)


def _on_policy(run: RunDirectory, _: int | None) -> OnPolicyResult:
    steps = [{"divergence": 0.5, "sample_length": 9.0, "grad_norm": 1.0, "grad_norms": {}} for _ in range(4)]
    return OnPolicyResult(drift="samples have 9.0 tokens", sampled_tokens=288, **learned(4.5) | {"steps": steps})


def _evaluate(run: RunDirectory, _: int | None) -> EvaluationResult:
    offline = [] if run.config().on_policy is None else [STUDENT_OFFLINE]
    models = {name: scores() for name in (BASE, STUDENT_BEFORE, *offline, STUDENT_AFTER)}
    less = None
    if run.config().sft is not None:  # and then the seal is open
        models |= {
            BASE: scores(4.0, 0.6),
            STUDENT_BEFORE: scores(5.0, 1.4),
            STUDENT_SFT: scores(4.1, 1.0),
            STUDENT_AFTER: scores(4.0, 0.9),
        }
        less = Difference(nll=-0.1, nll_stderr=0.02, true_kl=-0.1, true_kl_stderr=0.03, prompts=8)
    for number in range(run.config().alignment.rounds + 1):
        models[adapter_of(number)] = scores(3.7 - 0.05 * number, 0.5 - 0.02 * number)
    return evaluated(models, student_less_sft=less)


RESULTS: dict[str, Callable[[RunDirectory, int | None], Result]] = {
    "models": lambda run, _: ModelsResult(parameters={"proxy": 1000, "student": 500, "teacher": None}),
    "corpus": _corpus,
    "warmup": _warmup,
    "align": _align,
    "score": _score,
    "distil": _distil,
    "sft": lambda run, _: SftResult(**learned(4.1)),
    "on_policy": _on_policy,
    "evaluate": _evaluate,
}


def many_events(run: RunDirectory, count: int) -> None:
    """Events as plain files: writing each as the run does, durably, would take minutes."""
    run.events.mkdir(parents=True, exist_ok=True)
    for number in range(1, count + 1):
        event = {"time": 1.0e9 + number, "event": "warning", "message": f"number {number}"}
        (run.events / f"{number:06d}.jsonl").write_text(json.dumps(event) + "\n")
