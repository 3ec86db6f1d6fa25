"""What a run has found so far, finished or not, from its directory alone: the numbers of its page."""

from __future__ import annotations

import math
from collections.abc import Sequence

from proxykd.config import RunConfig
from proxykd.evaluation.inspection import has_inspected
from proxykd.evaluation.measures import Fidelity
from proxykd.evaluation.standard_errors import wilson
from proxykd.report.blocks import TeacherFacts, corpus_counts, on_policy_report, round_report, sft, soft_labels, trust
from proxykd.report.outcome import minus, outcome
from proxykd.report.overview_model import (
    Columns,
    CoordinatorClaim,
    DoneStage,
    Overview,
    OverviewRun,
    PipelineStage,
    ProxyPoint,
    RoundOverview,
    StudentKlSoFar,
    StudentOverview,
    TrustOverview,
)
from proxykd.runs.adapter_names import BASE
from proxykd.runs.journal import Entry, replay
from proxykd.runs.run_directory import RunDirectory, stage_key
from proxykd.stages.align import ALIGN, RoundResult
from proxykd.stages.corpus import CORPUS
from proxykd.stages.distil import DISTIL
from proxykd.stages.evaluate import EVALUATE, STUDENT_AFTER, STUDENT_BEFORE, STUDENT_OFFLINE, ModelScores
from proxykd.stages.models import MODELS
from proxykd.stages.results import Results
from proxykd.stages.table import expected
from proxykd.stages.trained import StepFacts, TrainedResult
from proxykd.stages.warmup import WARMUP

Models = dict[str, ModelScores]


def overview(run: RunDirectory) -> Overview:
    """The page's numbers as of now.

    Raises:
        IntegrityError: another version of the code wrote a stage's marker.
    """
    config, journal, results = run.config(), replay(run.journal), Results.read(run)
    evaluated = results.of(EVALUATE)
    return Overview(
        run=_run(run, config, journal, results),
        outcome=outcome(evaluated) if evaluated else None,
        pipeline=pipeline(config, journal, results),
        corpus=corpus_counts(run) if results.of(CORPUS) else None,
        fidelity=fidelity(results),
        rounds=[_round(run, result) for result in results.rounds(ALIGN)],
        steps={
            done.key: as_columns(done.result.steps) for done in results.stages if isinstance(done.result, TrainedResult)
        },
        soft_labels=soft_labels(results),
        trust=_trust(results),
        student=_student(results),
        coordinators=[_coordinator(entry) for entry in journal if entry["event"] == "EPOCH_CLAIMED"],
    )


def pipeline(config: RunConfig, journal: Sequence[Entry], results: Results) -> list[DoneStage | PipelineStage]:
    """Each stage as done, begun or ahead, with what it cost. Rounds that an early end left out are not in it."""
    begun = {stage_key(e["stage"], e["round"]) for e in journal if e["event"] == "STAGE_STARTED"}
    done = {finished.key: finished for finished in results.stages}
    order = [(stage.name, number, stage_key(stage.name, number)) for stage, number in expected(config)]
    last = max((i for i, (*_, key) in enumerate(order) if key in begun or key in done), default=-1)
    found: list[DoneStage | PipelineStage] = []
    for index, (stage, number, key) in enumerate(order):
        if key in done:
            cost = done[key].model_dump(include=set(DoneStage.model_fields))
            found.append(DoneStage(**cost, key=key, state="done"))
        elif key in begun:
            found.append(PipelineStage(stage=stage, round=number, key=key, state="begun"))
        elif index > last:
            found.append(PipelineStage(stage=stage, round=number, key=key, state="ahead"))
    return found


def fidelity(results: Results) -> list[ProxyPoint]:
    """The proxy's way: base, warm-up, every round. `test` and `true_kl` come with the evaluation."""
    warmup, models = results.of(WARMUP), _models(results)
    way: list[ProxyPoint] = []
    if warmup is not None or BASE in models:
        way.append(_point(models, "base", BASE, warmup.base if warmup else None, None))
    if warmup is not None:
        way.append(_point(models, "warm-up", warmup.adapter, warmup.validation, 0))
    for result in results.rounds(ALIGN):
        label = f"round {result.round}"
        way.append(_point(models, label, result.adapter, result.validation, result.round, judged=result))
    return way


def as_columns(steps: Sequence[StepFacts]) -> Columns:
    """Steps as a column a measure; each term's gradient norm as grad_<term>, None where it was not measured."""
    flat = [
        {**{k: v for k, v in step.items() if k != "grad_norms"}, **_named(step.get("grad_norms", {}))} for step in steps
    ]
    names = dict.fromkeys(name for step in flat for name in step)
    return {name: [step.get(name) for step in flat] for name in names}


def _named(norms: dict[str, float]) -> dict[str, float]:
    return {f"grad_{term}": value for term, value in norms.items()}


def _run(run: RunDirectory, config: RunConfig, journal: Sequence[Entry], results: Results) -> OverviewRun:
    models = results.of(MODELS)
    return OverviewRun(
        id=run.id,
        name=config.name,
        config_sha256=config.sha256,
        started_at=journal[0]["time"] if journal else None,
        finished_at=next((entry["time"] for entry in journal if entry["event"] == "RUN_FINISHED"), None),
        teacher=TeacherFacts(model=config.teacher.model, local=config.teacher.local is not None),
        proxy=config.proxy.source,
        student=config.student.source,
        source=config.distillation.source,
        parameters=models.parameters if models else {},
        layers_cut={"proxy": len(config.proxy.drop_layers), "student": len(config.student.drop_layers)},
    )


def _models(results: Results) -> Models:
    """Each model on the test slice; empty before the evaluation."""
    evaluated = results.of(EVALUATE)
    return evaluated.models if evaluated else {}


def _point(
    models: Models,
    label: str,
    adapter: str,
    validation: Fidelity | None,
    number: int | None,
    judged: RoundResult | None = None,
) -> ProxyPoint:
    tested = models.get(adapter)
    return ProxyPoint(
        label=label,
        adapter=adapter,
        validation=validation,
        test=tested.fidelity if tested else None,
        true_kl=tested.true_kl if tested else None,
        round=number,
        decision=judged.decision if judged else None,
        reason=judged.reason if judged else None,
    )


def _round(run: RunDirectory, result: RoundResult) -> RoundOverview:
    accuracy, pairs = result.dpo_accuracy_after, result.pairs_after
    return RoundOverview(
        **round_report(result).model_dump(),
        accuracy_after_range=wilson(accuracy, pairs) if accuracy is not None and pairs else None,
        inspected=has_inspected(run, result.round),
    )


def _trust(results: Results) -> TrustOverview | None:
    if (found := trust(results)) is None:
        return None
    judged = _models(results).get(found.adapter)
    rank, kls = found.spearman_vs_true_kl, judged.record_kls if judged else None
    told = None if rank is None else calibration(rank, len(kls or []))
    return TrustOverview(**found.model_dump(), calibration=told)


def calibration(rank: float, records: int) -> str:
    """Returns in words what the rank correlation of trust weight and true KL over so many records says.

    Ranks that have nothing to do with each other have one of 0 with a standard deviation of 1 / sqrt(n - 1).
    """
    told = minus(f"{rank:+.2f}")
    if records < 2:
        return told
    chance = 2 / math.sqrt(records - 1)
    if abs(rank) <= chance:
        return f"{told} over {records} records, as chance alone gives (up to ±{chance:.2f}): none is seen"
    closer = "closer to the teacher" if rank < 0 else "farther from the teacher"
    return f"{told} over {records} records: where more is trusted the proxy is {closer}"


def _student(results: Results) -> StudentOverview | None:
    if (distilled := results.of(DISTIL)) is None:
        return None
    models = _models(results)
    names = {"before": STUDENT_BEFORE, "offline": STUDENT_OFFLINE, "after": STUDENT_AFTER}
    tested = {when: models.get(name) for when, name in names.items()}
    return StudentOverview(
        **distilled.model_dump(exclude={"steps"}),
        **{when: one.fidelity if one else None for when, one in tested.items()},
        on_policy=on_policy_report(results),
        true_kl=StudentKlSoFar(**{when: one.true_kl if one else None for when, one in tested.items()}),
        sft=sft(results),
    )


def _coordinator(claim: Entry) -> CoordinatorClaim:
    return CoordinatorClaim(epoch=claim["epoch"], time=claim["time"], host=claim.get("host"), job=claim.get("job"))
