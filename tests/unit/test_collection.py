"""Collecting from a real HTTP server that misbehaves on purpose: what it costs, what is kept, what is never done."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from proxykd.collection.asks import asks_for
from proxykd.collection.collector import Outcome
from proxykd.collection.dataset import Dataset, content_digest
from proxykd.collection.job import Collection
from proxykd.collection.money import BudgetSpent, Ledger, Usage, worst_case
from proxykd.collection.response_log import ResponseLog, read_log
from proxykd.config import BudgetConfig, CollectConfig, CorpusConfig, PriceConfig, load_collect_config
from proxykd.corpus import read_corpus, read_prompts
from proxykd.errors import ConfigError, CorpusError, RunError, StorageError, TeacherError
from proxykd.storage import read_json, read_table
from tests.teacher_stub import KEY, RunningStub, teacher_stub

PROMPTS = 60
QUICK = {"timeout_s": 2.0, "give_up_after_s": 20.0, "concurrency": 16}


@pytest.fixture(scope="module")
def stub():
    with teacher_stub() as running:
        yield running


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
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


def collect(out: Path, config: CollectConfig, prompts: Path, limit: int | None = None) -> tuple[Collection, Outcome]:
    collection = Collection(out, config, read_prompts(prompts)[:limit])
    outcome = collection.run(config.teacher.address, lambda progress: None)
    collection.conclude(outcome)
    return collection, outcome


def whole(out: Path, config: CollectConfig, prompts: Path) -> dict:
    collection, outcome = collect(out, config, prompts)
    collection.require_whole(outcome)
    return read_json(out / "summary.json")


def rows_of(folder: Path) -> list[dict]:
    return [row for path in sorted(folder.glob("shard-*.parquet")) for row in read_table(path).to_pylist()]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of a data set that nothing befell."""
    folder = tmp_path_factory.mktemp("undisturbed")
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"What is the colour of item {n}?"}) + "\n" for n in range(PROMPTS)))
    with teacher_stub() as stub:
        whole(folder / "out", config_for(stub), path)
        assert stub.stats()["answered_twice"] == 0
    return digest(folder / "out")


def digest(out: Path) -> str:
    return content_digest(out, without=("parameters", "key"))


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


FAULTS = [
    "429", "429 with Retry-After", "500", "502", "503", "529", "reset", "hang", "slow drip", "truncated JSON",
    "wrong content type", "no choices",
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_costs_a_retry_and_no_answer(fault, prompts, tmp_path, undisturbed):
    share = 0.1 if fault.startswith("429") else 0.3  # each 429 slows the pace down, as it should
    with teacher_stub(faults=[fault], share=share) as stub:
        summary = whole(tmp_path / "out", config_for(stub, timeout_s=1.0), prompts)
        stats = stub.stats()
    assert stats["faults"][fault] > 30 * share
    assert summary["retried"] == stats["faults"][fault]
    assert digest(tmp_path / "out") == undisturbed
    charged = fault in ("reset", "hang", "slow drip", "truncated JSON", "wrong content type", "no choices")
    assert (summary["unanswered_tokens_at_most"] > 0) == charged


def test_a_teacher_that_never_answers_is_given_up_with_its_last_word(prompts, tmp_path):
    with teacher_stub(always="503") as stub:
        config = config_for(stub, max_retries=0)
        with pytest.raises(TeacherError, match=r"8 prompts in a row got no answer, the last one: HTTP 503: fault 503"):
            whole(tmp_path / "out", config, prompts)
        stub.control()
        assert whole(tmp_path / "out", config, prompts)["records"] == PROMPTS


def test_a_teacher_that_is_not_there_is_said_plainly(prompts, tmp_path):
    config = config_for(RunningStub(9), max_retries=1)
    with pytest.raises(TeacherError, match=r"got no answer, .*onnect"):
        whole(tmp_path / "out", config, prompts)


def test_silence_ends_in_the_time_that_the_config_gives(prompts, tmp_path):
    with teacher_stub(always="429") as stub, pytest.raises(TeacherError, match=r"no answer for \d s; .*HTTP 429"):
        whole(tmp_path / "out", config_for(stub, give_up_after_s=3.0), prompts)


def test_a_revoked_key_stops_at_once_and_loses_nothing(prompts, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with teacher_stub(revoke_after=25, key=KEY) as stub:
        with pytest.raises(TeacherError, match=r"HTTP 401: Incorrect API key provided: \[key\]") as raised:
            whole(tmp_path / "out", config_for(stub, concurrency=4), prompts)
        assert KEY not in str(raised.value)
        assert stub.stats()["answered"] == len(read_log(tmp_path / "out" / "responses").replies) == 25
        stub.control(key=KEY)
        assert whole(tmp_path / "out", config_for(stub), prompts)["records"] == PROMPTS
        assert stub.stats()["answered_twice"] == 0
    assert_no_key_in(tmp_path)
    captured = capfd.readouterr()
    assert KEY not in captured.out + captured.err


def assert_no_key_in(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path


def test_the_key_may_lie_in_a_file(prompts, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    (tmp_path / "key").write_text(f"{KEY}\n")
    with teacher_stub(key=KEY) as stub:
        teacher = {"api_key_file": str(tmp_path / "key")}
        assert whole(tmp_path / "out", config_for(stub, teacher), prompts)["records"] == PROMPTS
    assert_no_key_in(tmp_path / "out")
    with pytest.raises(ConfigError, match=r"api_key_file .*No such file"):
        collect(tmp_path / "none", config_for(stub, {"api_key_file": str(tmp_path / "no")}), prompts)
    with pytest.raises(ConfigError, match=r"no API key: set \$OPENAI_API_KEY"):
        collect(tmp_path / "none", config_for(stub, {"base_url": "default"}), prompts)


def test_another_model_in_the_middle_stops_and_is_put_apart_or_taken(prompts, tmp_path):
    with teacher_stub(model_after=30) as stub:
        with pytest.raises(
            TeacherError, match=r"answers as stub-2 now, as stub-1 before; .*accept_models=\[stub-1, stub-2\]"
        ):
            whole(tmp_path / "out", config_for(stub), prompts)
        taken = whole(tmp_path / "out", config_for(stub, accept_models=["stub-1", "stub-2"]), prompts)
        assert stub.stats()["answered_twice"] == 0
    assert taken["records"] == PROMPTS
    assert taken["models"]["stub-1"] == 30
    with teacher_stub(model_after=30) as stub:
        with pytest.raises(TeacherError, match="answers as stub-2"):
            whole(tmp_path / "other", config_for(stub), prompts)
        stub.control()
        summary = whole(tmp_path / "other", config_for(stub), prompts)
    assert summary["records"] + summary["dropped"]["other_model"] == PROMPTS
    assert {row["model"] for row in rows_of(tmp_path / "other" / "apart")} == {"stub-2"}


def test_a_prompt_that_the_provider_rejects_is_not_sent_again(prompts, tmp_path):
    with teacher_stub(faults=["400"], share=0.2) as stub:
        summary = whole(tmp_path / "out", config_for(stub), prompts)
        rejected = stub.stats()["faults"]["400"]
        whole(tmp_path / "out", config_for(stub), prompts)
        assert stub.stats()["faults"]["400"] == rejected
    assert summary["dropped"] == {"rejected": rejected}
    assert rows_of(tmp_path / "out" / "apart")[0]["finish_reason"] == "HTTP 400: fault 400 (server_error)"


def test_the_budget_holds_with_everything_in_flight(prompts, tmp_path):
    worst = worst_case(asks_for(read_prompts(prompts), config_for(RunningStub(9)).teacher, 7)[0], 32)
    budget = 5 * worst.tokens
    with teacher_stub(latency_s=0.05) as stub:
        with pytest.raises(BudgetSpent, match=rf"the budget of {budget} tokens does not bear one more request"):
            whole(tmp_path / "out", config_for(stub, budget={"tokens": budget}), prompts)
        stats = stub.stats()
        assert budget - worst.tokens < stats["tokens"] <= budget
        assert 1 < stats["most_in_flight"] <= 6  # and the question for these numbers
        whole(tmp_path / "out", config_for(stub, budget={"tokens": 100_000}), prompts)
        assert stub.stats()["answered_twice"] == 0


def test_money_is_tokens_times_prices(prompts, tmp_path):
    with teacher_stub() as stub:
        summary = whole(tmp_path / "out", config_for(stub, prices={"prompt": 3.0, "completion": 15.0}), prompts)
        tokens = stub.stats()["tokens"]
    assert summary["prompt_tokens"] + summary["completion_tokens"] == tokens
    assert summary["cost"] == pytest.approx((3 * summary["prompt_tokens"] + 15 * summary["completion_tokens"]) / 1e6)
    ledger = Ledger(BudgetConfig(cost=0.01), PriceConfig(prompt=3.0, completion=15.0))
    assert ledger.fits(Usage(0, 666))
    assert not ledger.fits(Usage(0, 667))
    ledger.reserve(Usage(0, 600))
    assert not ledger.fits(Usage(0, 67))
    ledger.lose(Usage(0, 600))
    assert ledger.unanswered_cost == pytest.approx(0.009)
    assert not ledger.fits(Usage(0, 67))


def test_the_estimate_counts_what_is_missing(stub, prompts, tmp_path):
    config = config_for(stub, prices={"prompt": 1.0, "completion": 10.0}, requests_per_minute=30)
    estimate = Collection(tmp_path / "out", config, read_prompts(prompts)).estimate()
    assert (estimate["requests"], estimate["completion_tokens_at_most"], estimate["minutes"]) == (
        PROMPTS,
        32 * PROMPTS,
        2,
    )
    assert estimate["prompt_tokens"] == round(sum(len(f"What is the colour of item {n}?") for n in range(PROMPTS)) / 4)
    assert estimate["cost"] == pytest.approx((estimate["prompt_tokens"] + 10 * 32 * PROMPTS) / 1e6)
    assert not (tmp_path / "out").exists()


def test_a_hedge_answers_once_and_both_are_accounted_for(prompts, tmp_path):
    with teacher_stub(faults=["hang"], share=0.3) as stub:
        summary = whole(tmp_path / "out", config_for(stub, hedge_after_s=0.2, timeout_s=10.0), prompts)
        assert stub.stats()["faults"]["hang"] > 5
    assert summary["records"] == PROMPTS
    assert summary["retried"] == 0
    assert summary["unanswered_tokens_at_most"] > 0


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


def test_a_torn_line_is_asked_for_again(tmp_path):
    log = ResponseLog(tmp_path)
    log.sent("a", Usage(10, 20))
    reply = {"text": "x", "model": "m", "prompt_tokens": 3, "completion_tokens": 4}
    place = log.replied("a", reply)
    log.sent("b", Usage(100, 200))
    log.close()
    [segment] = tmp_path.glob("*.jsonl")
    with segment.open("ab") as file:
        file.write(b'{"reply": "b", "text": "half')
    kept = read_log(tmp_path)
    assert (list(kept.replies), kept.spent, kept.unanswered) == (["a"], Usage(3, 4), Usage(100, 200))
    assert place.read()["text"] == "x"


KILLS = 50


def test_killed_fifty_times_the_data_set_is_the_same_and_nothing_is_paid_twice(tmp_path):
    """SIGKILL at random times to the command line's own process; each start goes on, until it is done."""
    path = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"What is the colour of item {n}?"} for n in range(3000)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    draw = random.Random(3)
    with teacher_stub(latency_s=0.02) as stub:
        config = tmp_path / "config.yaml"
        config.write_text(json.dumps(config_for(stub, concurrency=8).model_dump(mode="json")))
        command = [sys.executable, "-m", "tests.collect_once", str(config), str(path), str(tmp_path / "killed")]
        kills = 0
        while kills < KILLS:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert process.stdout is not None
            process.stdout.readline()  # it asks
            time.sleep(draw.uniform(0.0, 0.25))
            assert process.poll() is None, "it was done before its death; give it more prompts"
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        stats = stub.stats()
        whole(tmp_path / "undisturbed", config_for(stub), path)
    assert content_digest(tmp_path / "killed") == content_digest(tmp_path / "undisturbed")
    lost = stats["answered"] - len(rows)
    assert lost <= 8 * KILLS  # what was in flight, of 8 at a time
    assert len(read_log(Dataset(tmp_path / "killed").responses).replies) == len(rows)


def test_the_config_of_a_run_serves_and_a_local_teacher_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"teacher\.local is served within a run"):
        load_collect_config("configs/quickstart.yaml")
    with pytest.raises(ConfigError, match=r"teacher\.base_url is not set"):
        load_collect_config("configs/own-corpus.yaml")
    assert load_collect_config("configs/own-corpus.yaml", ("teacher.base_url=default",)).teacher.address is None
    with pytest.raises(ConfigError, match=r"budget\.cost needs collection\.prices"):
        load_collect_config("configs/own-corpus.yaml", ("teacher.base_url=x", "collection.budget.cost=5"))


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


def test_a_full_disk_stops_the_asking_and_loses_no_answer(prompts, tmp_path):
    """On a real file system of 20 MiB, which fills up while requests are in flight."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(disk)], check=True)
    try:
        with teacher_stub(latency_s=0.3) as stub:
            config = config_for(stub, concurrency=8)
            collection = Collection(disk / "out", config, read_prompts(prompts))

            def fill(progress) -> None:
                if progress.done and not (disk / "ballast").exists():
                    (disk / "ballast").write_bytes(bytes(18 << 20))

            outcome = collection.run(stub.base_url, fill)
            with pytest.raises(StorageError, match=r"MiB are left on its disk; free space there"):
                collection.require_whole(outcome)
            assert stub.stats()["answered"] == len(read_log(disk / "out" / "responses").replies) < PROMPTS
            (disk / "ballast").unlink()
            whole(disk / "out", config, prompts)
            stats = stub.stats()
            assert (stats["answered"], stats["answered_twice"]) == (PROMPTS, 0)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


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


def test_the_command_line_shows_the_estimate_the_cost_and_where_it_lies(prompts, tmp_path):
    with teacher_stub() as stub:
        config = tmp_path / "config.yaml"
        prices = {"prompt": 1.0, "completion": 10.0}
        config.write_text(json.dumps(config_for(stub, prices=prices).model_dump(mode="json")))
        command = [
            "-m",
            "services.cli",
            "collect",
            str(config),
            "--prompts",
            str(prompts),
            "--out",
            str(tmp_path / "out"),
        ]

        def run(*more: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run([sys.executable, *command, *more], capture_output=True, text=True)

        dry = run("--dry-run")
        assert dry.returncode == 0
        assert "60 prompts, 60 requests to send" in dry.stdout
        assert stub.stats()["answered"] == 0
        done = run()
        assert done.returncode == 0, done.stderr
        assert "Many providers restrict" in done.stdout
        assert "60/60 answers" in done.stdout
        assert f"data set: {tmp_path / 'out'}" in done.stdout
        again = run("--set", "collection.terms=checked")
        assert "0 requests to send" in again.stdout
        assert "Many providers" not in again.stdout
        bad = run("--set", "teacher.temperature=0.1")
        assert (bad.returncode, bad.stdout.count("Traceback")) == (2, 0)
        assert "other: temperature" in bad.stderr


def test_two_do_not_collect_the_same_data_set(prompts, tmp_path):
    with teacher_stub(latency_s=0.5) as stub:
        config = tmp_path / "config.yaml"
        config.write_text(json.dumps(config_for(stub).model_dump(mode="json")))
        command = [sys.executable, "-m", "services.cli", "collect", str(config), "--prompts", str(prompts)]
        command += ["--out", str(tmp_path / "out")]
        first = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while not stub.stats()["in_flight"]:
            time.sleep(0.05)
        second = subprocess.run(command, capture_output=True, text=True)
        assert second.returncode == 2
        assert "is being collected by another process" in second.stderr
        first.send_signal(signal.SIGTERM)
        assert first.wait() == 2
        stats = stub.stats()
        assert stats["answered"] == len(read_log(tmp_path / "out" / "responses").replies)
