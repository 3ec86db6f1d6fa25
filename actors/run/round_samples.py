"""What a round trains on: its records of D_p, the proxy's own completions of their prompts, and, for a few of them, the
engine's log-probs.
"""

from __future__ import annotations

from dataclasses import asdict
from itertools import islice
from pathlib import Path

from actors.data.engine_shards import EngineCall, Sampler
from actors.run.context import Context
from actors.run.preparation import take_added
from proxykd.data.corpus_store import manifest, slice_ranges
from proxykd.data.pairs import drawn_from, read_pairs
from proxykd.data.round_records import growing_round, round_slice
from proxykd.data.row_ranges import RowRange, parts, select
from proxykd.runs.adapter_names import adapter_name
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import discard_shard, read_json, unfinished, write_json
from proxykd.training.loops.align import Parity


def rows_of_round(context: Context, number: int) -> list[RowRange]:
    """Where the round's records of D_p are."""
    run, config, corpus = context.run, context.config.alignment, context.config.corpus
    name = corpus.slice_for("alignment")
    segments = [segments_of(context, each) for each in range(1, number + 1)]
    rows = slice_ranges(run, name, segments[-1])
    if corpus.follow:
        totals = [manifest(run, many)[name] for many in segments]
        return select(rows, growing_round(totals, config))
    return select(rows, round_slice(number, sum(map(len, rows)), config))


def segments_of(context: Context, number: int) -> int:
    """How far the corpus had grown when the round first began: a round that is resumed takes nothing new."""
    for entry in context.journal.entries:
        if entry["event"] == "ROUND_STARTED" and entry["round"] == number:
            return int(entry.get("segments", 0))
    return take_added(context)


def sample_round(context: Context, number: int, reference: str) -> list[Path]:
    """y^ from the round's own start, by tasks that feed the deployment; finished shards stand."""
    run, shards = context.run, shards_of_round(context, number)
    for path in shards:
        if not unfinished(path) and drawn_from(path) != adapter_name(run.id, reference):
            discard_shard(path)  # sampled ahead, from an adapter that did not come into force
    missing = any(unfinished(path) for path in shards)
    if missing or not _parity_file(run, number).exists():
        with context.proxy_engine(reference) as call:
            if missing:
                context.events.step("sample")
                context.shards.pairs(shards, sampler(context, number, call), context.config.alignment)
            context.events.step("parity sample")
            _keep_parity(context, number, list(shards), call)
    return list(shards)


def shards_of_round(context: Context, number: int) -> dict[Path, list[RowRange]]:
    """The files of the round's pairs, each with where the rows are that it is made of."""
    rows = enumerate(parts(rows_of_round(context, number), context.config.corpus.shard_records))
    return {context.run.pairs(number) / f"shard-{i:05d}.parquet": part for i, part in rows}


def sampler(context: Context, number: int, call: EngineCall) -> Sampler:
    return Sampler(call, number, context.config.seed, context.room(context.config.alignment.max_new_tokens))


def parity_of_round(run: RunDirectory, number: int) -> Parity:
    return Parity(**read_json(_parity_file(run, number)))


def _keep_parity(context: Context, number: int, shards: list[Path], call: EngineCall) -> None:
    """The engine's log-probs of a few teacher completions, for the trainer to compare with its own.

    Kept, so that a round whose training goes on after a death needs no engine.
    """
    pairs = (row for path in shards for row in read_pairs(path))
    rows = list(islice(pairs, context.config.alignment.parity_records))
    prompts, completions = [list(r["prompt_ids"]) for r in rows], [list(r["completion_ids"]) for r in rows]
    scored = call("score", prompts=prompts, completions=completions, top_k=1) if rows else []
    logps = [float(value) for one in scored for value in one.token_logps_T]
    write_json(_parity_file(context.run, number), asdict(Parity(prompts, completions, logps)))


def _parity_file(run: RunDirectory, number: int) -> Path:
    return run.round(number) / "parity.json"
