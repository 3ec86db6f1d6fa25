"""The batch APIs of both providers, against a real HTTP server."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from proxykd.collection.response_log import read_log
from proxykd.errors import TeacherError
from proxykd.runs.storage import read_json
from tests.collecting import PROMPTS, config_for, rows_of, whole
from tests.teacher_stub import KEY, teacher_stub

BATCHED = {"batch": {"requests": 25, "poll_s": 0.2}}


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_batches_give_the_same_records_and_failures_go_into_another(provider, prompts, tmp_path, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    with teacher_stub(latency_s=0.3, faults=["batch"], share=0.2) as stub:
        teacher = {"provider": provider} | ({"base_url": stub.root} if provider == "anthropic" else {})
        summary = whole(tmp_path / "out", config_for(stub, teacher, **BATCHED), prompts)
        stats = stub.stats()
    assert summary["records"] == PROMPTS
    assert stats["answered"] == PROMPTS
    assert stats["faults"]["batch"] > 3
    assert stats["batches"] >= 4
    assert summary["unanswered_tokens_at_most"] == 0
    rows = rows_of(tmp_path / "out" / "records")
    assert {row["completion_tokens"] for row in rows} == {8}


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_a_process_that_starts_again_waits_for_the_batches_that_are_out(provider, prompts, tmp_path, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    with teacher_stub(latency_s=4.0) as stub:
        teacher = {"provider": provider} | ({"base_url": stub.root} if provider == "anthropic" else {})
        config = tmp_path / "config.yaml"
        config.write_text(json.dumps(config_for(stub, teacher, **BATCHED).model_dump(mode="json")))
        command = [sys.executable, "-m", "tests.collect_once", str(config), str(prompts), str(tmp_path / "out")]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while stub.stats()["batches"] < 3:
            time.sleep(0.05)
            assert process.poll() is None
        process.kill()
        process.wait()
        notes = sorted((tmp_path / "out" / "batches").glob("*.json"))
        last = max(notes, key=lambda path: read_json(path)["time"])
        last.write_text(json.dumps(read_json(last) | {"batch": None}))  # killed before it heard of the submission
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        stats = stub.stats()
    summary = read_json(tmp_path / "out" / "summary.json")
    assert (stats["batches"], stats["answered"], stats["answered_twice"]) == (3, PROMPTS, 0)
    assert (summary["records"], summary["unanswered_tokens_at_most"]) == (PROMPTS, 0)


@pytest.mark.parametrize(
    ("provider", "habit", "words"),
    [
        ("openai", "openai: max_tokens", r"Unsupported parameter.*\n.*max_tokens_field=max_completion_tokens"),
        ("anthropic", "anthropic: credit", r"credit balance is too low.*\nmend the account"),
        ("openai", "a bare 400", r"prompts were refused and none was answered since"),
    ],
)
def test_a_batch_that_is_refused_line_by_line_puts_nothing_apart(
    provider, habit, words, prompts, tmp_path, monkeypatch
):
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    with teacher_stub(habits=[habit]) as stub:
        teacher = {"provider": provider} | ({"base_url": stub.root} if provider == "anthropic" else {})
        with pytest.raises(TeacherError, match=words):
            whole(tmp_path / "out", config_for(stub, teacher, **BATCHED), prompts)
        assert read_log(tmp_path / "out" / "responses").refused == {}
        stub.control()
        assert whole(tmp_path / "out", config_for(stub, teacher, **BATCHED), prompts)["records"] == PROMPTS


def test_prompts_that_a_batch_refuses_are_put_apart_and_go_into_another_on_demand(prompts, tmp_path):
    with teacher_stub(habits=["azure: filter", "a bare 400"], habit_share=0.2) as stub:
        summary = whole(tmp_path / "out", config_for(stub, **BATCHED), prompts)
        refused = sum(stub.stats()["faults"].values())
        assert summary["dropped"] == {"rejected": refused}
        stub.control()
        again = whole(tmp_path / "out", config_for(stub, **BATCHED), prompts, retry=frozenset({"rejected"}))
    assert (again["records"], again["dropped"]) == (PROMPTS, {})


def test_a_batch_that_is_refused_as_a_whole_says_why_and_is_submitted_anew(prompts, tmp_path):
    with teacher_stub(refuses_batches=True) as stub:
        with pytest.raises(TeacherError, match=r"the batch was refused: Enqueued token limit reached"):
            whole(tmp_path / "out", config_for(stub, **BATCHED), prompts)
        stub.control()
        assert whole(tmp_path / "out", config_for(stub, **BATCHED), prompts)["records"] == PROMPTS
