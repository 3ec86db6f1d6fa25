"""What a data set holds and what goes into it, collected from a real HTTP server."""

from __future__ import annotations

import json

import pytest

from proxykd.collection.job import Collection
from proxykd.config import CorpusConfig, load_collect_config
from proxykd.errors import ConfigError, CorpusError, RunError
from proxykd.runs.storage import read_json
from proxykd.text.corpus import read_prompts
from tests.collecting import PROMPTS, collect, config_for, rows_of, whole
from tests.plain_corpus import read_corpus
from tests.teacher_stub import KEY, teacher_stub


def test_a_data_set_has_every_answer_with_its_provenance(stub, prompts, tmp_path):
    summary = whole(tmp_path / "out", config_for(stub, {"system": "Be brief."}), prompts)
    rows = rows_of(tmp_path / "out" / "records")
    assert [row["messages"][1]["content"] for row in rows] == [
        f"What is the colour of item {n}?" for n in range(PROMPTS)
    ]
    assert rows[0]["messages"][0] == {"role": "system", "content": "Be brief."}
    assert rows[0]["messages"][2]["content"].split()[0] in rows[0]["messages"][2]["content"]
    assert {row["model"] for row in rows} == {"stub-1"}
    assert {row["finish_reason"] for row in rows} == {"stop"}
    assert json.loads(rows[0]["parameters"])["max_tokens"] == 32
    assert all(row["request_id"].startswith("chatcmpl-") and row["time"] for row in rows)
    assert summary["records"] == PROMPTS
    assert summary["completion_tokens"] == sum(row["completion_tokens"] for row in rows) == 8 * PROMPTS
    reading = read_corpus(CorpusConfig(path=str(tmp_path / "out")))
    assert [record.id for record in reading.records] == [row["id"] for row in rows]
    assert reading.records[0].completion == rows[0]["messages"][2]["content"]


def test_anthropics_messages_give_the_same_records(stub, prompts, tmp_path, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    teacher = {"provider": "anthropic", "base_url": stub.root, "system": "Be brief."}
    summary = whole(tmp_path / "out", config_for(stub, teacher), prompts)
    row = rows_of(tmp_path / "out" / "records")[0]
    assert (row["finish_reason"], row["completion_tokens"], row["provider"]) == ("stop", 8, "anthropic")
    assert row["request_id"].startswith("msg_")
    assert summary["records"] == PROMPTS


def test_several_samples_differ_and_name_their_prompt(stub, prompts, tmp_path):
    whole(tmp_path / "out", config_for(stub, {"samples": 3}), prompts)
    rows = rows_of(tmp_path / "out" / "records")
    assert len(rows) == 3 * PROMPTS
    first = rows[:3]
    assert len({row["prompt_id"] for row in first}) == 1
    assert len({row["messages"][-1]["content"] for row in first}) == 3
    assert [row["id"] for row in first] == [f"{first[0]['prompt_id']}-{n}" for n in range(3)]


def test_starting_again_sends_only_what_is_missing_and_prompts_that_were_added(prompts, tmp_path):
    with teacher_stub() as stub:
        collect(tmp_path / "out", config_for(stub), prompts, limit=20)
        assert stub.stats()["answered"] == 20
        whole(tmp_path / "out", config_for(stub), prompts)
        whole(tmp_path / "out", config_for(stub), prompts)
        stats = stub.stats()
        assert (stats["answered"], stats["answered_twice"]) == (PROMPTS, 0)
        with prompts.open("a") as file:
            file.write('{"prompt": "One more?"}\n')
        summary = whole(tmp_path / "out", config_for(stub), prompts)
    assert summary["records"] == PROMPTS + 1
    assert len({row["id"] for row in rows_of(tmp_path / "out" / "records")}) == PROMPTS + 1
    assert sorted(path.name for path in (tmp_path / "out" / "records").glob("*.parquet")) == [
        "shard-00000.parquet",
        "shard-00001.parquet",
        "shard-00002.parquet",
    ]


def test_prompts_that_stand_twice_are_sent_once(stub, tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"id": "a", "prompt": "Hello there"}\n{"id": "b", "prompt": " hello  THERE"}\n')
    summary = whole(tmp_path / "out", config_for(stub), path)
    assert (summary["records"], summary["duplicates"]) == (1, 1)


def test_screened_prompts_cost_nothing_and_are_kept_apart(tmp_path):
    question = "Natalia sold clips to forty eight of her friends in April and then she sold half as many in May"
    bench = tmp_path / "bench.jsonl"
    bench.write_text(json.dumps({"question": question}) + "\n")
    near = "tell me in a few words why the sky over the sea is blue in the morning and red in the evening sun"
    path = tmp_path / "p.jsonl"
    lines = ["A good question?", f"Please answer: {question}. How many?", near, f"{near} please"]
    path.write_text("".join(json.dumps({"prompt": line}) + "\n" for line in lines))
    with teacher_stub() as stub:
        quality = {"benchmarks": [str(bench)], "drop": ["contaminated", "near_duplicate"], "near_duplicate": 0.8}
        summary = whole(tmp_path / "out", config_for(stub, quality=quality), path)
        assert stub.stats()["answered"] == 2
    assert summary["dropped"] == {"contaminated": 1, "near_duplicate": 1}
    apart = rows_of(tmp_path / "out" / "apart")
    assert [row["flags"] for row in apart] == [["contaminated"], ["near_duplicate"]]
    assert apart[0]["messages"][-1]["role"] == "user"
    with pytest.raises(CorpusError, match=r"no\.jsonl does not exist"):
        Collection(tmp_path / "x", config_for(stub, quality={"benchmarks": ["no.jsonl"]}), read_prompts(path))


def test_another_request_does_not_go_into_the_same_data_set(stub, prompts, tmp_path):
    whole(tmp_path / "out", config_for(stub), prompts)
    with pytest.raises(RunError, match="other: temperature"):
        whole(tmp_path / "out", config_for(stub, {"temperature": 0.5}), prompts)


def test_terms_and_licence_stand_in_the_metadata(stub, prompts, tmp_path):
    whole(tmp_path / "out", config_for(stub, licence="CC-BY-4.0", terms="checked on 2026-11-22"), prompts)
    about = read_json(tmp_path / "out" / "dataset.json")
    assert (about["licence"], about["terms"]) == ("CC-BY-4.0", "checked on 2026-11-22")


def test_the_config_of_a_run_serves_and_a_local_teacher_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"teacher\.local is served within a run"):
        load_collect_config("configs/quickstart.yaml")
    with pytest.raises(ConfigError, match=r"teacher\.base_url is not set"):
        load_collect_config("configs/own-corpus.yaml")
    assert load_collect_config("configs/own-corpus.yaml", ("teacher.base_url=default",)).teacher.address is None
    with pytest.raises(ConfigError, match=r"budget\.cost needs collection\.prices"):
        load_collect_config("configs/own-corpus.yaml", ("teacher.base_url=x", "collection.budget.cost=5"))


def test_a_grey_box_has_its_log_probs_kept(prompts, tmp_path):
    with teacher_stub(logprobs=True) as stub:
        whole(tmp_path / "out", config_for(stub, {"top_logprobs": 2}), prompts)
        whole(tmp_path / "black", config_for(stub), prompts)
    row = rows_of(tmp_path / "out" / "records")[0]
    told = json.loads(row["top_logprobs"])
    assert [one["token"] for one in told] == row["messages"][-1]["content"].split()
    assert told[0]["top"] == [["amber", -0.5], ["birch", -1.5]]
    assert rows_of(tmp_path / "black" / "records")[0]["top_logprobs"] is None
    assert read_corpus(CorpusConfig(path=str(tmp_path / "out"))).records[0].top_logprobs == told
    assert read_corpus(CorpusConfig(path=str(tmp_path / "black"))).records[0].top_logprobs is None
