"""The prompts of a test slice, found again in the text that a run was made of."""

from __future__ import annotations

import json

import pytest

from proxykd.certification.prompts import Columns, digest_of, held_out_prompts
from proxykd.collection.dataset import SCHEMA
from proxykd.data.corpus_store import write_rows
from proxykd.errors import CorpusError
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import write_json
from proxykd.runs.table_shards import write_rows_as_shard
from proxykd.text.corpus import prompt_key
from tests.small_run import run_config

ASKED = [f"ask {i}" for i in range(6)]


def said(i):
    return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": ASKED[i]}]


@pytest.fixture
def run(tmp_path):
    """One that asked its teacher: prompts 1, 3 and 5 are its test slice."""
    rows = [{"id": f"p{i}", "prompt": text, "team": "ab"[i % 2], "right": str(i)} for i, text in enumerate(ASKED)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = {"prompts": str(tmp_path / "prompts.jsonl"), "max_length": 96, "shard_records": 8}
    teacher = {"base_url": "http://127.0.0.1:9/v1", "system": "Be brief."}
    run = RunDirectory.create(run_config("m", str(tmp_path / "runs"), corpus=corpus, teacher=teacher))
    records = [
        {"id": f"p{i}", "messages": [*said(i), {"role": "assistant", "content": f"say {i}"}], "finish_reason": "stop"}
        for i in range(6)
    ]
    write_json(run.collected / "dataset.json", {})
    write_rows_as_shard(run.collected / "records" / "shard-00000.parquet", records, SCHEMA)
    held_out = [{"id": f"p{i}", "prompt_ids": [1], "completion_ids": [2], "prompt_key": prompt_key(tuple(said(i)))} for i in (5, 1, 3)]  # fmt: skip
    write_rows(run.corpus / "test", held_out, 8)
    write_json(run.corpus / "manifest.json", {"test": 3})
    return run


def test_they_have_the_teachers_answers_and_the_messages_that_were_asked(run):
    found = held_out_prompts(run, Columns())
    assert [(one.text, one.teacher) for one in found] == [(f"ask {i}", f"say {i}") for i in (1, 3, 5)]
    assert found[0].messages == tuple(said(1))
    assert digest_of(found) == digest_of(found[::-1]) != digest_of(found[1:])


def test_columns_are_those_of_the_file_that_was_asked(run):
    found = held_out_prompts(run, Columns(by=("team",), gold="right"))
    assert [(one.columns, one.gold, one.teacher) for one in found] == [
        ({"team": "b"}, str(i), f"say {i}") for i in (1, 3, 5)
    ]


def test_text_that_is_gone_is_said(run, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    with pytest.raises(CorpusError, match=r"prompts.jsonl lacks 2 of the 3 prompts of the run's test slice"):
        held_out_prompts(run, Columns(by=("team",)))
