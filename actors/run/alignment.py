"""The proxy's stages: its warm-up, and rounds of on-policy DPO, each from and against the last promoted proxy."""

from __future__ import annotations

import time
from dataclasses import asdict
from itertools import islice
from pathlib import Path

from actors.data.engine_shards import EngineCall, Sampler
from actors.data.streams import stream_corpus, stream_pairs
from actors.run.context import Context
from actors.run.preparation import take_added, task_as_asked
from actors.telemetry.event_types import Warned
from proxykd.data.corpus_store import manifest, slice_ranges
from proxykd.data.pairs import count_pairs, read_pairs
from proxykd.data.round_records import growing_round, require_rounds, round_slice
from proxykd.data.row_ranges import RowRange, completion_tokens, parts, select, whole
from proxykd.evaluation.promotion import Change, ScoreChange, decide, round_rate, stop_reason
from proxykd.evaluation.task import prompts_of, score_change
from proxykd.evaluation.validation_scores import validation_change
from proxykd.report.adapter_catalogue import adapters_in_force
from proxykd.runs.storage import finished_facts, read_json, unfinished, write_json
from proxykd.stages.align import ALIGN, RoundResult
from proxykd.stages.stage import Finished, Made
from proxykd.stages.warmup import WarmupResult
from proxykd.training.loops.align import Parity, RoundTask, align_nll
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
    return stop_reason(changes, context.config.alignment)


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
    segments = _segments_of(context, number)
    verdicts = [done.result.decision for done in _rounds_before(context, number)]
    rate = round_rate(verdicts, config)
    facts = {"reference": reference, "seed": context.config.seed, "segments": segments, "learning_rate": rate}
    context.journal.append("ROUND_STARTED", round=number, **facts)
    began = time.time()
    shards = _sample(context, number, reference) if config.preference else []
    sampled = time.time()
    counts = count_pairs(shards) if config.preference else {}
    rows = whole(shards) if config.preference else _rows_of(context, number)
    records = sum(map(len, rows))
    parity = Parity(**read_json(_parity_file(context, number))) if config.preference else None
    context.events.step("train")
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


def _sample(context: Context, number: int, reference: str) -> list[Path]:
    """y^ from the round's own start, by tasks that feed the deployment; finished shards stand."""
    config, folder = context.config, context.run.pairs(number)
    rows = enumerate(parts(_rows_of(context, number), config.corpus.shard_records))
    shards = {folder / f"shard-{i:05d}.parquet": part for i, part in rows}
    missing = any(unfinished(path) for path in shards)
    if missing or not _parity_file(context, number).exists():
        with context.proxy_engine(reference) as call:
            if missing:
                context.events.step("sample")
                draw = Sampler(call, number, config.seed, context.room(config.alignment.max_new_tokens))
                context.shards.pairs(shards, draw, config.alignment)
            context.events.step("parity sample")
            _keep_parity(context, number, list(shards), call)
    return list(shards)


def _rows_of(context: Context, number: int) -> list[RowRange]:
    """Where the round's records of D_p are."""
    run, config, corpus = context.run, context.config.alignment, context.config.corpus
    name = corpus.slice_for("alignment")
    segments = [_segments_of(context, each) for each in range(1, number + 1)]
    rows = slice_ranges(run, name, segments[-1])
    if corpus.follow:
        totals = [manifest(run, many)[name] for many in segments]
        return select(rows, growing_round(totals, config))
    return select(rows, round_slice(number, sum(map(len, rows)), config))


def _segments_of(context: Context, number: int) -> int:
    """How far the corpus had grown when the round first began: a round that is resumed takes nothing new."""
    for entry in context.journal.entries:
        if entry["event"] == "ROUND_STARTED" and entry["round"] == number:
            return int(entry.get("segments", 0))
    return take_added(context)


def _keep_parity(context: Context, number: int, shards: list[Path], call: EngineCall) -> None:
    """The engine's log-probs of a few teacher completions, for the trainer to compare with its own.

    Kept, so that a round whose training goes on after a death needs no engine.
    """
    pairs = (row for path in shards for row in read_pairs(path))
    rows = list(islice(pairs, context.config.alignment.parity_records))
    prompts, completions = [list(r["prompt_ids"]) for r in rows], [list(r["completion_ids"]) for r in rows]
    scored = call("score", prompts=prompts, completions=completions, top_k=1) if rows else []
    logps = [float(value) for one in scored for value in one.token_logps_T]
    write_json(_parity_file(context, number), asdict(Parity(prompts, completions, logps)))


def _parity_file(context: Context, number: int) -> Path:
    return context.run.round(number) / "parity.json"
