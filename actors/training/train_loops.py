"""What runs on the Ray Train workers: one function a stage, each around the method of proxykd/.

A loop returns its result as JSON-ready facts, which rank 0 writes to the run directory: storage is the truth.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import ray.train
import torch
from ray.train.torch import get_device

from actors.data.streams import write_soft_labels
from actors.engine.proxy_engine import CompletionLogps
from actors.telemetry.logs import log_of
from actors.training.after_round import pairs_after_round
from actors.training.objectives import OBJECTIVES
from actors.training.resumable_training import ResumableTraining
from proxykd.config import RunConfig
from proxykd.data.corpus_store import read_shard_rows, read_slice, slice_shards
from proxykd.data.soft_labels import LabelSource
from proxykd.errors import ProxykdError, RunStoppedError
from proxykd.evaluation.fidelity import (
    RecordScores,
    SealedTeacher,
    mass_shares,
    pair_token_logps,
    score_records,
    spearman,
    teacher_kl,
)
from proxykd.evaluation.inspection import first_pairs, write_inspected
from proxykd.evaluation.validation_scores import write_validation
from proxykd.losses.divergences import Divergence
from proxykd.losses.trust import Trust
from proxykd.models.batching import collate, plan_micro_batches
from proxykd.models.loading import load_scorer, merge_adapter, read_adapter, save_adapter, save_model
from proxykd.models.parallel import Workers, full_state
from proxykd.models.scorer import CompletionScorer
from proxykd.runs.storage import (
    RunDirectory,
    location,
    publish_directory,
    refusal,
    unfinished,
    verify_directory,
    write_json,
)
from proxykd.text.corpus import Row
from proxykd.text.tokenizer import load_tokenizer
from proxykd.training import gates
from proxykd.training.stage_losses import REFERENCE_KEYS, AlignmentLoss, SftLoss, WhiteBoxLoss, pair_logps
from proxykd.training.trainer import Step

Facts = dict[str, Any]


class Worker:
    """What every loop has: the run, this worker's place, and the way to report progress."""

    def __init__(self, task: Facts):
        self.task = task
        self.run = RunDirectory.open(task["run"])
        self.config: RunConfig = self.run.config()
        resources = self.config.resources
        share = max(1, len(os.sched_getaffinity(0)) // resources.trainer_workers)
        torch.set_num_threads(resources.trainer_threads or share)
        torch.manual_seed(self.config.seed)
        device = torch.device("cpu")
        if resources.device == "gpu":
            device = get_device()
            torch.set_float32_matmul_precision("high")  # TF32, for what is kept in float32
        self.workers = Workers.current(resources.parallel, device)
        self.report = task["reporter"]()

    @property
    def lead(self) -> bool:
        return self.workers.rank == 0

    def progress(self, done: float, total: float, unit: str, **metrics: Any) -> None:
        if self.lead:
            self.report(done, total, unit, **metrics)

    def go_on(self) -> None:
        """Every worker must call it.

        Raises:
            RunStoppedError: one of them sees that the run is to stop; in all of them.
        """
        if self.workers.any(self.run.stop_request.exists()):
            raise RunStoppedError("stopped, as asked")

    def arithmetic(self) -> Facts:
        """What decides a log-prob's last digits beside weights and rows; what is compared must be made alike.

        In bfloat16 a row's padding alone moves its sum by up to 0.7 nats.
        """
        device, resources = self.workers.device, self.config.resources
        mine = {
            "micro_batch_tokens": resources.micro_batch_tokens,
            "workers": self.workers.world,
            "parallel": resources.parallel,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "threads": torch.get_num_threads(),
            "torch": str(torch.__version__),
        }
        facts: Facts = self.workers.of_lead(mine)
        return facts

    def proxy(self, adapter: str | None, trainable: bool = True) -> CompletionScorer:
        directory = self.run.adapters / adapter if adapter else None
        scorer = load_scorer(
            self.run.models / "proxy", self.config.proxy, adapter=directory, seed=self.config.seed, trainable=trainable
        )
        return self.workers.place(scorer)

    def open_teacher(self) -> CompletionScorer:
        """The white-box baselines' teacher."""
        assert self.config.white_box is not None
        frozen = self.config.white_box.teacher.model_copy(update={"method": "full"})
        return self.workers.place(load_scorer(self.run.models / "white_box", frozen, trainable=False))

    def validate(self, scorer: CompletionScorer) -> RecordScores:
        rows = read_slice(self.run, "validation")
        return score_records(scorer, rows, self.workers, self.config.resources.micro_batch_tokens)


def run_loops(config: Facts) -> None:
    """The function that Ray Train runs: every task's loop, but for those that an earlier attempt has finished.

    Which these are, rank 0 says: what it finishes now, another worker may not have begun.
    """
    tasks = config["tasks"]
    unfinished_here = [i for i, task in enumerate(tasks) if not location(task["outcome"]).exists()]
    unfinished_tasks = Workers.current("ddp", get_device()).of_lead(unfinished_here)
    if all(run_loop(tasks[i]) for i in unfinished_tasks):
        ray.train.report({})


def run_loop(task: Facts) -> bool:
    """One task. A ProxykdError is a finding, not a crash: it is stored, not retried.

    One that a single worker of several meets would leave the others waiting for it, so that it fails all the same: Ray
    Train starts the workers again, who find the task finished.

    Storage that refuses a write is the coordinator's to know. The worker that met it fails, so that none of the others
    waits for it; Ray Train starts them again, and they leave: False.
    """
    worker = Worker(task)
    if worker.report.refusal() is not None:
        return False
    began, log = time.monotonic(), log_of(worker.run, "trainer")
    at = {key: task.get(key) for key in ("key", "loop", "round")} | {"rank": worker.workers.rank}
    log.info("begins", extra={"facts": at})
    try:
        try:
            worker.go_on()
            outcome: Facts = {"result": LOOPS[task["loop"]](worker), "seconds": time.monotonic() - began}
        except ProxykdError as error:
            outcome = {"error": {"type": type(error).__name__, "message": str(error)}}
            if worker.workers.world > 1 and not isinstance(error, RunStoppedError):  # which all of them raise
                write_json(location(task["outcome"]), outcome)
                raise
        if worker.lead:
            write_json(location(task["outcome"]), outcome)
        log.info("done", extra={"facts": at | {"seconds": time.monotonic() - began}})
    except Exception as error:
        log.exception("failed", extra={"facts": at})
        if (message := refusal(error, worker.run.root)) is not None:
            worker.report.storage_refused(message)
        raise
    return True


def warm_up(worker: Worker) -> Facts:
    """Proxy SFT on D_w, equation (1), from fresh adapters."""
    scorer = worker.proxy(None)
    training = ResumableTraining(worker, scorer, worker.config.warmup)
    if "base" not in training.notes:
        training.notes["base"] = worker.validate(scorer).fidelity()
    steps = training.run(lambda rows: training.trainer.step(rows, SftLoss(rows)))
    validation = worker.validate(scorer)
    result = {
        "nll_loss": fmean(s.losses["nll"] for s in steps),
        "base": training.notes["base"],
        "validation": validation.fidelity(),
        "steps": [s.facts() for s in steps],
    }
    return _save_proxy(worker, scorer, "warmup", {"round": 0, "parent": None}, result, validation)


def align(worker: Worker) -> Facts:
    """One round, equations (3)-(6): reference log-probs and parity first, then NLL + DPO from the same adapter."""
    config, task = worker.config.alignment, worker.task
    scorer = worker.proxy(task["reference"])
    training = ResumableTraining(worker, scorer, config)
    notes, budget = training.notes, worker.config.resources.micro_batch_tokens
    pairs = first_pairs(worker.run, task["round"])
    if notes.get("arithmetic") != (arithmetic := worker.arithmetic()):
        began = time.monotonic()
        notes["references"], notes["parity"] = _reference_pass(worker, scorer, training)
        notes["arithmetic"] = arithmetic
        notes["reference_seconds"] = time.monotonic() - began + notes.get("reference_seconds", 0.0)
        notes["before"] = pair_token_logps(scorer, pairs, worker.workers, budget)
        training.save()

    def step(rows: list[Row]) -> Step:
        rows = [{**row, **notes["references"][row["index"]]} for row in rows]
        loss = AlignmentLoss(rows, config)

        def gate(losses: dict[str, float], _: dict[str, float]) -> None:
            largest = float(worker.workers.max(torch.tensor(loss.largest_margin, device=worker.workers.device)))
            notes["step0"] = {"step0_margin_max_abs": largest, "step0_dpo_loss": losses["dpo"]}
            gates.check_step0(largest, losses["dpo"])

        return training.trainer.step(rows, loss, gate if "step0" not in notes else None)

    steps = training.run(step)
    began = time.monotonic()
    judged = pairs_after_round(worker, scorer, training)
    judged_seconds = time.monotonic() - began
    began = time.monotonic()
    validation = worker.validate(scorer)
    after = pair_token_logps(scorer, pairs, worker.workers, budget)
    if worker.lead:
        tokenizer = load_tokenizer(worker.run.models / "proxy")
        write_inspected(worker.run, task["round"], pairs, notes["before"], after, tokenizer)
    evaluated = time.monotonic() - began
    measured = [s for s in steps if s.grad_norms]
    result = {
        **notes["step0"],
        **notes["parity"],
        "nll_loss": fmean(s.losses["nll"] for s in steps),
        "dpo_loss": fmean(s.losses["dpo"] for s in steps),
        **({"teacher_kl_loss": fmean(s.losses["teacher_kl"] for s in steps)} if config.teacher_kl else {}),
        "nll_grad_norm": fmean(s.grad_norms["nll"] for s in measured),
        "dpo_grad_norm": fmean(s.grad_norms["dpo"] for s in measured),
        "dpo_accuracy": sum(s.metrics["correct"] for s in steps) / training.records_seen,
        "margin_mean": sum(s.metrics["margin"] for s in steps) / training.records_seen,
        **judged,
        "validation": validation.fidelity(),
        "seconds": {
            "reference": notes["reference_seconds"],
            "train": training.seconds,
            "after": judged_seconds,
            "evaluate": evaluated,
        },
        "steps": [s.facts() for s in steps],
    }
    facts = {"round": task["round"], "parent": task["reference"]}
    return _save_proxy(worker, scorer, f"r{task['round']:02d}", facts, result, validation)


def align_nll(worker: Worker) -> Facts:
    """One round without the preference loss: NLL alone on the round's records (an ablation)."""
    config, task = worker.config.alignment, worker.task
    scorer = worker.proxy(task["reference"])
    training = ResumableTraining(worker, scorer, config)
    by_sequence = config.nll_reduction == "sequence_sum"
    steps = training.run(lambda rows: training.trainer.step(rows, SftLoss(rows, by_sequence)))
    began = time.monotonic()
    validation = worker.validate(scorer)
    result = {
        "nll_loss": fmean(s.losses["nll"] for s in steps),
        "validation": validation.fidelity(),
        "seconds": {"train": training.seconds, "evaluate": time.monotonic() - began},
        "steps": [s.facts() for s in steps],
    }
    facts = {"round": task["round"], "parent": task["reference"]}
    return _save_proxy(worker, scorer, f"r{task['round']:02d}", facts, result, validation)


def assist(worker: Worker) -> Facts:
    """TAKD's assistant: the proxy's base with a fresh adapter, by forward KL from the open teacher on its own text."""
    assert worker.config.white_box is not None
    scorer, teacher = worker.proxy(None), worker.open_teacher()
    training = ResumableTraining(worker, scorer, worker.config.white_box.assistant)
    divergence = Divergence("forward_kl", worker.config.white_box.temperature)
    steps = training.run(lambda rows: training.trainer.step(rows, WhiteBoxLoss(rows, teacher, divergence)))
    validation = worker.validate(scorer)
    result = {"validation": validation.fidelity(), "steps": [s.facts() for s in steps]}
    return _save_proxy(worker, scorer, "assistant", {"round": None, "parent": None}, result, validation)


def _reference_pass(
    worker: Worker, scorer: CompletionScorer, training: ResumableTraining
) -> tuple[dict[int, Facts], Facts]:
    """Reference sequence log-probs on exactly training's micro-batches; and the parity of engine and trainer.

    The reference is the policy before its first step, or before it takes up a checkpoint: the same weights in the same
    place, no second copy.
    """
    task = worker.task
    references: dict[int, Facts] = {}
    steps = training.total_steps // worker.config.alignment.epochs
    for number, rows in enumerate(training.first_epoch(), start=1):
        for part, weight in training.trainer.micro_batches(rows):
            with torch.no_grad():
                logps = pair_logps(scorer, part)
            if weight:
                columns = zip(part, *(column.tolist() for column in logps), strict=True)
                references |= {r["index"]: dict(zip(REFERENCE_KEYS, values, strict=True)) for r, *values in columns}
        worker.progress(number, steps, "reference batches")
    everyones = [pair for part in worker.workers.gather_objects(references) for pair in part.items()]
    sample = task["parity"]
    ours: list[float] = []
    for prompt, completion in zip(sample["prompts"], sample["completions"], strict=True):
        batch = collate([prompt], [completion]).to(worker.workers.device)
        ours += scorer.score(batch).token_logps_N.tolist()
    mean_abs, max_abs = worker.workers.of_lead(gates.parity(sample["logps"], ours))
    gates.check_parity(mean_abs, max_abs, worker.config.parity_threshold, str(task["reference"]))
    return dict(everyones), {"parity_mean_abs": mean_abs, "parity_max_abs": max_abs}


def score(worker: Worker) -> Facts:
    """Soft labels of D_s by the trainer's own forward pass: top-K, tail and the actual token (appendix A.1).

    Each worker scores a shard of its own at a time, with as many forward passes as the others.
    """
    task, workers = worker.task, worker.workers
    source: LabelSource = task["source"]
    labels = worker.run.soft_labels(source.adapter)
    scorer = worker.proxy(task["adapter"], trainable=False)
    shards = slice_shards(worker.run, "distillation")
    worker.progress(0, len(shards), "shards")
    for done in range(0, len(shards), workers.world):
        worker.go_on()
        mine = [path for path in shards[done:][workers.rank : workers.rank + 1] if unfinished(labels / path.name)]
        rows = [row for path in mine for row in read_shard_rows(path)]
        scored = _score_rows(worker, scorer, rows, source.top_k)
        for path in mine:
            write_soft_labels(labels / path.name, rows, scored, source)
        worker.progress(min(done + workers.world, len(shards)), len(shards), "shards")
    return {}


def _score_rows(worker: Worker, scorer: CompletionScorer, rows: list[Row], top_k: int) -> list[CompletionLogps]:
    results: dict[int, CompletionLogps] = {}
    plan = plan_micro_batches([row["length"] for row in rows], worker.config.resources.micro_batch_tokens)
    batches = [
        collate([rows[i]["prompt_ids"] for i in part], [rows[i]["completion_ids"] for i in part]) for part in plan
    ]
    for batch, part in zip(worker.workers.in_step(scorer, batches), plan, strict=True):
        scores = scorer.score(batch, top_k)
        assert scores.top is not None
        columns = (scores.token_logps_N, scores.top.ids_NK, scores.top.logps_NK, scores.top.tail_logmass_N)
        ends = batch.lengths_B.cumsum(0)[:-1].tolist()
        split = [np.split(column.cpu().numpy(), ends) for column in columns]
        for index, logps, ids, top, tail in zip(part, *split, strict=True):
            results[index] = CompletionLogps(logps, ids, top, tail, worker.task["source"].adapter)
    return [results[i] for i in range(len(rows))]


def distil(worker: Worker) -> Facts:
    """The student: NLL + alpha * trust * KL from the stored soft labels, equations (7)-(11), or what is compared."""
    config = worker.config.distillation
    base = worker.run.models / "student"
    scorer = worker.workers.place(load_scorer(base, worker.config.student, seed=worker.config.seed))
    training = ResumableTraining(worker, scorer, config)
    total = training.total_steps
    every = -(-total // config.evaluations) if config.evaluations else total + 1
    curve: list[Facts] = training.notes.setdefault("curve", [])

    def point() -> None:
        fidelity = worker.validate(scorer).fidelity()
        curve.append({**fidelity, "step": len(training.steps), "records": training.records_seen})
        if config.snapshots and training.steps:
            _save_student(worker, scorer, base, worker.run.snapshot(len(training.steps)), fidelity)

    objective = OBJECTIVES[config.source](worker)

    def step(rows: list[Row]) -> Step:
        return training.trainer.step(*objective(training.trainer, rows))

    def after_step() -> None:
        if len(training.steps) % every == 0 or len(training.steps) == total:
            point()

    if not curve:
        point()
    steps = training.run(step, after_step)
    result = {
        "loss_share": _shares([s.losses for s in steps]),
        "grad_share": _shares([s.grad_norms for s in steps if s.grad_norms]),
        "curve": curve,
        "steps": [s.facts() for s in steps],
    }
    _save_student(worker, scorer, base, worker.run.student, curve[-1])
    return result


def evaluate(worker: Worker) -> Facts:
    """The test slice, reported once: every model's fidelity, and the true KL where the teacher's seal may be opened."""
    task, run, config = worker.task, worker.run, worker.config
    rows = read_slice(run, "test")
    budget = config.resources.micro_batch_tokens
    teacher = None
    if config.teacher.local is not None:
        frozen = config.teacher.local.model_copy(update={"method": "full"})
        opened = worker.workers.place(load_scorer(run.models / "teacher", frozen, trainable=False))
        teacher = SealedTeacher(opened)
    trust, source = task["trust"], config.distillation.source
    proxies = [*(["base"] if trust or task["adapters"] else []), *task["adapters"]]
    others = ["student_before", "student_after", *(["white_box"] if source in ("white_box", "assistant") else [])]
    models: dict[str, Facts] = {}
    worker.progress(0, len(proxies) + len(others), "models")

    def measure(name: str, scorer: CompletionScorer) -> None:
        worker.go_on()
        scores = score_records(scorer, rows, worker.workers, budget, teacher)
        facts: Facts = {"fidelity": scores.fidelity()}
        if scores.true_kl is not None:
            facts["true_kl"] = scores.mean_true_kl()
            facts["record_kls"] = [s / max(t, 1) for s, t in zip(scores.true_kl, scores.tokens, strict=True)]
        if (told := teacher_kl(scorer, rows, worker.workers, budget)) is not None:
            facts["teacher_kl"] = told
        facts["sequence_logps"] = [-value for value in scores.nll]
        facts["tokens"] = scores.tokens
        models[name] = facts
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
    for name, directory in (("student_before", run.models / "student"), ("student_after", run.student)):
        measure(name, worker.workers.place(load_scorer(directory, frozen, trainable=False)))
    if "white_box" in others:
        measure("white_box", worker.open_teacher())
    correlation = trust and _trust_correlation(models[trust["adapter"]], trust)
    return {"models": models, "share_mass_over_095": shares, "spearman_vs_true_kl": correlation}


def _trust_correlation(judged: Facts, trust: Facts) -> float | None:
    """Does a higher weight mean a proxy closer to the teacher? Rank correlation with the true KL, record by record."""
    if "record_kls" not in judged:
        return None
    weights = Trust.of(trust).weights(judged["sequence_logps"], judged["tokens"])
    return spearman(weights, judged["record_kls"])


def _save_proxy(
    worker: Worker, scorer: CompletionScorer, prefix: str, facts: Facts, result: Facts, validation: RecordScores
) -> Facts:
    state = full_state(scorer.model, trainable_only=True, keep=worker.lead)
    if worker.lead:
        path = save_adapter(
            scorer.model, state, worker.run.adapters, prefix, {**facts, "fidelity": result["validation"]}
        )
        write_validation(worker.run, path.name, validation)
        result["adapter"] = path.name
    return result


def _save_student(worker: Worker, scorer: CompletionScorer, base: Path, target: Path, fidelity: Facts) -> None:
    student = worker.config.student
    state = full_state(scorer.model, trainable_only=student.method == "lora", keep=worker.lead)
    if not worker.lead:
        return
    if student.method == "lora":
        facts = {"round": None, "parent": None, "fidelity": fidelity}
        adapter = save_adapter(scorer.model, state, worker.run.adapters, "student", facts)
        merge_adapter(base, adapter, target, student.dtype)
    else:

        def build(directory: Path) -> Facts:
            save_model(scorer.model, base, directory, state)
            return {"base": str(base), "adapter": None}

        publish_directory(target, build)
    load_tokenizer(target)
    verify_directory(target)


def _shares(values: list[dict[str, float]]) -> dict[str, float]:
    """Each term's part of the sum of the means; absolute, so that a negative variant shows too."""
    means = {name: abs(fmean(v[name] for v in values)) for name in (values[0] if values else ())}
    total = sum(means.values()) or 1.0
    return {name: value / total for name, value in means.items()}


LOOPS: dict[str, Callable[[Worker], Facts]] = {
    "warmup": warm_up,
    "align": align,
    "align_nll": align_nll,
    "assist": assist,
    "score": score,
    "distil": distil,
    "evaluate": evaluate,
}
