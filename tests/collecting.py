"""Collecting in tests: a config for the stub, one collection from start to end, what it left."""

from __future__ import annotations

import json
from pathlib import Path

from proxykd.collection.dataset import content_digest
from proxykd.collection.job import Collection
from proxykd.collection.progress import Outcome
from proxykd.config import CollectConfig
from proxykd.runs.storage import read_json, read_table
from proxykd.text.corpus import read_prompts
from tests.teacher_stub import KEY, RunningStub

PROMPTS = 60
QUICK = {"timeout_s": 20.0, "give_up_after_s": 60.0, "concurrency": 16}


def write_prompts(folder: Path) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"What is the colour of item {n}?"}) + "\n" for n in range(PROMPTS)))
    return path


def config_for(
    stub: RunningStub, teacher: dict | None = None, quality: dict | None = None, **collection
) -> CollectConfig:
    return CollectConfig.model_validate(
        {
            "seed": 7,
            "teacher": {"model": "stub-1", "base_url": stub.base_url, "max_tokens": 32} | (teacher or {}),
            "quality": quality or {},
            "collection": QUICK | collection,
        }
    )


def collect(
    out: Path, config: CollectConfig, prompts: Path, limit: int | None = None, retry: frozenset[str] = frozenset()
) -> tuple[Collection, Outcome]:
    collection = Collection(out, config, read_prompts(prompts)[:limit], retry)
    outcome = collection.run(config.teacher.address, lambda progress: None)
    collection.conclude(outcome)
    return collection, outcome


def whole(out: Path, config: CollectConfig, prompts: Path, retry: frozenset[str] = frozenset()) -> dict:
    collection, outcome = collect(out, config, prompts, retry=retry)
    collection.require_whole(outcome)
    return read_json(out / "summary.json")


def rows_of(folder: Path) -> list[dict]:
    return [row for path in sorted(folder.glob("shard-*.parquet")) for row in read_table(path).to_pylist()]


def digest(out: Path) -> str:
    return content_digest(out, without=("parameters", "key"))


def assert_no_key_in(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path
