"""A real HTTP server that misbehaves on purpose, SIGKILL and a full disk: what is kept, and what is paid for."""

from __future__ import annotations

import json
import os
import random
import subprocess
import time

import pytest

from proxykd.collection.budget import Usage
from proxykd.collection.dataset import Dataset, content_digest
from proxykd.collection.job import Collection
from proxykd.collection.response_log import ResponseLog, read_log
from proxykd.errors import ConfigError, StorageError, TeacherError
from proxykd.text.corpus import read_prompts
from tests.collect_once import main as collect_once
from tests.collecting import PROMPTS, assert_no_key_in, collect, config_for, digest, rows_of, whole
from tests.forks import forks
from tests.teacher_stub import KEY, RunningStub, teacher_stub

FAULTS = [
    "429", "429 with Retry-After", "500", "502", "503", "529", "reset", "hang", "slow drip", "truncated JSON",
    "wrong content type", "no choices",
]  # fmt: skip
KILLS = 50
HABITS = [
    "content in parts", "events", "no usage", "lone surrogate", "no id, no model", "ended by error", "ended by max_tokens",
    "azure: filter", "openrouter: flagged", "openai: too long", "a bare 400", "200: flagged",
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_costs_a_retry_and_no_answer(fault, prompts, tmp_path, undisturbed):
    share = 0.1 if fault.startswith("429") else 0.3  # each 429 lowers the rate, as it should
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


def test_a_data_set_may_lack_the_share_that_the_config_gives(prompts, tmp_path):
    short = pytest.raises(TeacherError, match=r"of 60 prompts got no answer, .*\n.*collection.max_failed_share")
    with teacher_stub(faults=["500"], share=0.1) as stub, short:
        whole(tmp_path / "none", config_for(stub, max_retries=0), prompts)
    with teacher_stub(faults=["500"], share=0.1) as stub:
        summary = whole(tmp_path / "out", config_for(stub, max_retries=0, max_failed_share=0.5), prompts)
        assert PROMPTS - summary["records"] == stub.stats()["faults"]["500"] > 0


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


def test_the_key_may_lie_in_a_file_or_in_a_variable_of_another_name(prompts, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    (tmp_path / "key").write_text(f"{KEY}\n")
    with teacher_stub(key=KEY) as stub:
        teacher = {"api_key_file": str(tmp_path / "key")}
        assert whole(tmp_path / "out", config_for(stub, teacher), prompts)["records"] == PROMPTS
    assert_no_key_in(tmp_path / "out")
    monkeypatch.setenv("LAB_KEY", KEY)
    with teacher_stub(key=KEY) as stub:
        named = config_for(stub, {"api_key_env": "LAB_KEY"})
        assert whole(tmp_path / "by variable", named, prompts)["records"] == PROMPTS
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
    assert (list(kept.replies), kept.usage, kept.unanswered) == (["a"], Usage(3, 4), Usage(100, 200))
    assert place.read()["text"] == "x"


def test_killed_fifty_times_the_data_set_is_the_same_and_nothing_is_paid_twice(tmp_path):
    """SIGKILL after a few more answers to a process of its own, by providers' habits in half of the prompts; each start
    goes on, until it is done."""
    path, out = tmp_path / "prompts.jsonl", tmp_path / "killed"
    rows = [{"prompt": f"What is the colour of item {n}?"} for n in range(1500)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    draw = random.Random(3)
    with teacher_stub(latency_s=0.02, habits=HABITS, habit_share=0.5) as stub:
        settings = config_for(stub, quality={"near_duplicate": 1.0}, concurrency=8)  # others would take seconds to find
        config = tmp_path / "config.yaml"
        config.write_text(json.dumps(settings.model_dump(mode="json")))
        for _ in range(KILLS):
            process = forks().Process(target=collect_once, args=(str(config), str(path), str(out)))
            wanted = stub.stats()["answered"] + draw.randrange(12)
            process.start()
            while stub.stats()["answered"] < wanted:
                assert process.is_alive(), "it was done before its death; give it more prompts"
                time.sleep(0.01)
            time.sleep(draw.uniform(0.0, 0.05))
            process.kill()
            process.join()
        last = forks().Process(target=collect_once, args=(str(config), str(path), str(out)))
        last.start()
        last.join()
        assert last.exitcode == 0
        stats = stub.stats()
        whole(tmp_path / "undisturbed", settings, path)
    assert content_digest(out) == content_digest(tmp_path / "undisturbed")
    kept = read_log(Dataset(out).responses)
    lost = stats["answered"] - len(kept.replies)
    assert lost <= 8 * KILLS  # what was in flight, of 8 at a time
    assert len(kept.replies) + len(kept.refused) == len(rows)
    assert all(stats["faults"][habit] > 25 for habit in HABITS)


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
