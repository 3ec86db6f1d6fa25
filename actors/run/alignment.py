"""The proxy's stages: its warm-up, and rounds of on-policy DPO, each from and against the last promoted proxy."""

from __future__ import annotations

import time

from actors.data.streams import stream_corpus, stream_pairs
from actors.run.context import Context
from actors.run.preparation import task_as_asked
from actors.run.round_samples import parity_of_round, rows_of_round, sample_round, segments_of
from actors.run.sampling_ahead import sampling_ahead
from actors.telemetry.event_types import Warned
from proxykd.data.corpus_store import manifest, slice_ranges
from proxykd.data.pairs import count_pairs
from proxykd.data.round_records import require_rounds
from proxykd.data.row_ranges import completion_tokens, whole
from proxykd.evaluation.promotion import Change, ScoreChange, decide, round_rate, stop_reason
from proxykd.evaluation.task import prompts_of, score_change
from proxykd.evaluation.validation_scores import validation_change
from proxykd.report.adapter_catalogue import adapters_in_force
from proxykd.runs.storage import delete, finished_facts, write_json
from proxykd.stages.align import ALIGN, RoundResult
from proxykd.stages.stage import Finished, Made
from proxykd.stages.warmup import WarmupResult
from proxykd.training.loops.align import RoundTask, align_nll
from proxykd.training.loops.align import align as align_with_preference
from proxykd.training.loops.warm_up import WarmupTask
from proxykd.training.loops.warm_up import warm_up as warm_up_loop


def warm_up(context: Context, _: int | None) -> Made[WarmupResult]:
    """Equation (1) with the proxy in the student's place: SFT on D_w, as the corpus was when the run began.

    Raises:
        CorpusError: D_p is too small for the rounds that follow.
        BenchmarkError: alignment.task cannot be asked.
    """
    _require_records(context)
    name = context.config.corpus.slice_for("warmup")
    rows = slice_ranges(context.run, name, segments=0)
    records = sum(map(len, rows))
    task = WarmupTask(records, task_as_asked(context, prompts_of(context.run, context.config.corpus.slices)))
    result = context.train("warmup", warm_up_loop, task, stream_corpus(rows, context.data_pool))
    return Made(result, result.records, round(completion_tokens(rows) * result.records / records))


def _require_records(context: Context) -> None:
    corpus = context.config.corpus
    if not corpus.follow:  # what grows has records enough for each round by itself
        name = corpus.slice_for("alignment")
        require_rounds(manifest(context.run)[name], name, context.config.alignment)


def why_it_ends(context: Context, rounds: int) -> str | None:
    """Why the alignment ends after so many rounds, or None where another one follows.

    Raises:
        CorpusError: D_p is too small for the rounds; also where the warm-up was taken over from another run.
    """
    _require_records(context)
    in_force = [one["adapter"] for one in adapters_in_force(context.run)][: rounds + 1]
    changes = [
        _change(context, before, done.result.adapter) if done.result.decision == "promote" else None
        for before, done in zip(in_force, _rounds_before(context, rounds + 1), strict=False)
    ]
    reason = stop_reason(changes, context.config.alignment)
    if reason is not None:
        delete(context.run.pairs(rounds + 1))  # sampled ahead, for a round that does not follow
    return reason


def _change(context: Context, before: str, after: str) -> Change:
    """From one adapter to another, by the run's measure."""
    compared = validation_change if context.config.alignment.task is None else score_change
    return compared(context.run, before, after)


def _rounds_before(context: Context, number: int) -> list[Finished[RoundResult]]:
    """The rounds 1 to `number` - 1, which are done."""
    found = [ALIGN.finished(context.run, one) for one in range(1, number)]
    return [done for done in found if done is not None]


def align(context: Context, number: int | None) -> Made[RoundResult]:
    """One round, equations (3) to (6): sample from the proxy in force, train against it, judge the result."""
    assert number is not None
    run, config = context.run, context.config.alignment
    reference = context.aligned_adapter()
    assert reference is not None
    segments = segments_of(context, number)
    verdicts = [done.result.decision for done in _rounds_before(context, number)]
    rate = round_rate(verdicts, config)
    facts = {"reference": reference, "seed": context.config.seed, "segments": segments, "learning_rate": rate}
    context.journal.append("ROUND_STARTED", round=number, **facts)
    began = time.time()
    shards = sample_round(context, number, reference) if config.preference else []
    sampled = time.time()
    counts = count_pairs(shards) if config.preference else {}
    rows = whole(shards) if config.preference else rows_of_round(context, number)
    records = sum(map(len, rows))
    parity = parity_of_round(run, number) if config.preference else None
    context.events.step("train")
    with sampling_ahead(context, number, reference):
        trained = context.train(
            f"align-{number:02d}",
            align_with_preference if config.preference else align_nll,
            RoundTask(number, reference, records, rate, parity, task_as_asked(context)),
            (stream_pairs if config.preference else stream_corpus)(rows, context.data_pool),
        )
    change = _change(context, reference, trained.adapter)
    decision = decide(change)
    event = "ROUND_PROMOTED" if decision.verdict == "promote" else "ROUND_REJECTED"
    context.journal.append(event, round=number, adapter=trained.adapter, reason=decision.reason)
    if decision.warning:
        context.events.emit(Warned(f"round {number}: {decision.reason}"))
    result = RoundResult(
        **dict(trained) | {"seconds": {"sample": sampled - began, **trained.seconds}},
        **{"pairs": records, "dropped": {}} | counts,
        round=number,
        learning_rate=rate,
        reference_adapter=reference,
        decision=decision.verdict,
        reason=decision.reason,
        validation_change=validation_change(run, reference, trained.adapter).measure(),
        task_change=change.measure() if isinstance(change, ScoreChange) else None,
    )
    write_json(run.round(number) / "metrics.json", result.model_dump())
    sampled_tokens = sum(finished_facts(path)["tokens"] for path in shards)
    return Made(result, records, sampled_tokens + completion_tokens(rows))
