"""The stages of the methods that Proxy-KD is compared with: an open teacher's own text, and TAKD's assistant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from actors.data.streams import Sampler, complete_prompts, stream_corpus
from actors.run.workbench import Workbench, completion_tokens
from proxykd.data.corpus_store import read_shard_rows, slice_shards
from proxykd.runs.storage import shard_facts, unfinished

Facts = dict[str, Any]


def complete(bench: Workbench) -> Facts:
    """The open teacher's own completions of D_s's prompts."""
    return _complete(bench, "distillation")


def assist(bench: Workbench) -> Facts:
    """TAKD's teacher assistant: the proxy's base, taught by the open teacher on D_w and D_p; never aligned."""
    white_box = bench.config.white_box
    assert white_box is not None
    _complete(bench, "warmup", "alignment")
    bench.stop_open_teacher()
    shards = [*completed(bench, "warmup"), *completed(bench, "alignment")]
    records = sum((shard_facts(path) or {})["records"] for path in shards)
    result = bench.train("assist", "assist", stream_corpus(shards, bench.data_pool), records=records)
    epochs = white_box.assistant.epochs
    return {**result, "cost": bench.cost(records=records * epochs, tokens=epochs * completion_tokens(shards))}


def completed(bench: Workbench, slice_name: str) -> list[Path]:
    return sorted(bench.run.completed(slice_name).glob("shard-*.parquet"))


def _complete(bench: Workbench, *slices: str) -> Facts:
    white_box = bench.config.white_box
    assert white_box is not None
    shards = {
        bench.run.completed(name) / path.name: read_shard_rows(path)
        for name in slices
        for path in slice_shards(bench.run, name)
    }
    if any(unfinished(path) for path in shards):
        with bench.open_teachers_engine() as call:
            bench.events.step("complete")
            draw = Sampler(call, 0, bench.config.seed, bench.room(white_box.max_new_tokens))
            complete_prompts(shards, draw, bench.reporter, bench.run)
    records = sum(map(len, shards.values()))
    return {"records": records, "cost": bench.cost(records=records, tokens=completion_tokens(list(shards)))}
