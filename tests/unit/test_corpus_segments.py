"""A corpus that grows: what is added joins alignment and distillation, and the held-out slices stay as they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from proxykd.collection import dataset as datasets
from proxykd.collection.job import Collection
from proxykd.config import AlignmentConfig, CollectConfig
from proxykd.data.corpus_segments import source_of, take_added
from proxykd.data.corpus_store import (
    committed_segments,
    manifest,
    read_slice,
    slice_shards,
    write_corpus,
    write_rows_shard,
)
from proxykd.data.round_records import growing_round, round_slice
from proxykd.errors import ConfigError
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import sha256_file
from proxykd.study.studies import validate_study
from proxykd.text.corpus import read_prompts, slice_of
from tests.small_run import run_config
from tests.teacher_stub import RunningStub, teacher_stub


@pytest.fixture(scope="module")
def stub():
    with teacher_stub() as running:
        yield running


def collect(stub: RunningStub, folder: Path, prompts: int) -> None:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Which tree is number {n}?"}) + "\n" for n in range(prompts)))
    config = CollectConfig.model_validate({"teacher": {"model": "stub-1", "base_url": stub.base_url, "max_tokens": 16}})
    collection = Collection(folder / "data", config, read_prompts(path))
    collection.require_whole(collection.run(stub.base_url, lambda progress: None))


def held_out(run: RunDirectory) -> dict[str, str]:
    return {str(p): sha256_file(p) for name in ("validation", "test") for p in slice_shards(run, name)}


def test_added_records_join_where_they_may(stub, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "SHARD_RECORDS", 16)
    collect(stub, tmp_path, 160)
    split = {"validation": 0.15, "test": 0.15, "warmup": 0.2, "alignment": 0.4, "distillation": 0.4}
    corpus = {"path": str(tmp_path / "data"), "follow": 100, "max_length": 256, "shard_records": 8, "split": split}
    config = run_config(str(tiny), str(tmp_path / "runs"), corpus=corpus)
    run = RunDirectory.create(config)
    write_corpus(run, config, source_of(config), tiny)
    assert manifest(run)["records"] == 160
    assert take_added(run, config, tiny) is None
    before, base = held_out(run), {name: read_slice(run, name) for name in ("warmup", "alignment", "distillation")}

    collect(stub, tmp_path, 260)
    write_rows_shard(
        run.corpus / "alignment" / "segment-001-00009.parquet", base["alignment"][:3]
    )  # a killed attempt's
    segment = take_added(run, config, tiny)
    assert segment is not None
    assert (segment["segment"], len(segment["sources"])) == (1, 7)
    assert held_out(run) == before
    prompts = {record.id: record for record in read_prompts(tmp_path / "prompts.jsonl")}
    new = list(prompts)[160:]
    expected = dict.fromkeys(("validation", "test", "warmup", "alignment", "distillation"), 0)
    for record_id in new:
        expected[slice_of(prompts[record_id].messages, config.corpus)] += 1
    assert segment["alignment"] == expected["alignment"] + expected["warmup"]
    assert segment["distillation"] == expected["distillation"]
    assert segment["dropped"] == {"held_out": expected["validation"] + expected["test"]}
    alignment = read_slice(run, "alignment")
    assert alignment[: len(base["alignment"])] == base["alignment"] == read_slice(run, "alignment", segments=0)
    assert {row["id"] for row in alignment[len(base["alignment"]) :]} < set(new)
    assert read_slice(run, "warmup") == base["warmup"]
    assert manifest(run)["alignment"] == len(alignment)
    assert manifest(run, segments=0)["alignment"] == len(base["alignment"])
    assert take_added(run, config, tiny) is None
    assert committed_segments(run) == 1


def test_rounds_take_what_is_new_first_then_what_none_has_used():
    config = AlignmentConfig(rounds=4, pairs_per_round=4)
    assert growing_round([10], config) == [0, 1, 2, 3]
    assert growing_round([10, 10], config) == [4, 5, 6, 7]
    assert growing_round([10, 13], config) == [10, 11, 12, 4]
    assert growing_round([10, 13, 13], config) == [5, 6, 7, 8]
    assert growing_round([10, 13, 13, 13], config) == [9, 0, 1, 2]
    still = AlignmentConfig(rounds=2)
    assert [growing_round([10] * n, still) for n in (1, 2)] == [round_slice(n, 10, still) for n in (1, 2)]


def test_follow_is_for_a_run_with_a_path_alone(tmp_path):
    with pytest.raises(ConfigError, match=r"corpus\.follow goes with corpus\.path alone"):
        run_config("x", "runs", corpus={"path": "data", "follow": 5, "limit": 3})
    run = run_config("x", "runs", corpus={"path": "data", "follow": 5}).model_dump(
        mode="json", exclude={"name", "seed"}
    )
    raw = {"name": "s", "run": run}
    with pytest.raises(ConfigError, match="another corpus"):
        validate_study(raw | {"arms": ["proxy_kd"], "seeds": [1]}, "test")
