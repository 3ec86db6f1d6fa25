"""A whole run by the command line, as a user does it: killed, stopped and resumed on its way, finished, asked again.

The deaths here are the short set; `make chaos` has the whole matrix.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest
import yaml
from playwright.sync_api import expect

from actors.telemetry.event_files import read_events
from actors.telemetry.event_types import MetricsOpen
from actors.telemetry.live_state import read_live
from actors.telemetry.metrics import GAUGES, REPLICA_GAUGES
from proxykd.data.pairs import SIDES, read_pairs
from proxykd.evaluation.inspection import read_inspected
from proxykd.models.batching import collate
from proxykd.models.loading import load_scorer
from proxykd.runs.journal import replay
from proxykd.runs.run_directory import RunDirectory, stage_key
from proxykd.runs.storage import read_json, sha256_file, verify_directory
from proxykd.stages.align import ALIGN
from proxykd.text.tokenizer import load_tokenizer
from tests import tiny_model
from tests.browser import NO_CHROMIUM, chromium, watched_page
from tests.chaos.victims import kill, nothing_left
from tests.object_store import free_port
from tests.small_run import run_config

pytestmark = pytest.mark.timeout(3600)  # the fixture is a quarter of an hour on two cores, twice that on slow ones


def proxykd(*arguments: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "proxykd"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL)


def processes_naming(text: str) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                environment = (entry / "environ").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if text in line or text in environment:
                found.append(f"{entry.name} {line[:120]}")
    return found


def wait_for(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.5)


class Client(threading.Thread):
    """Asks a run's routes all the time, as somebody would who does not know that it is at work."""

    def __init__(self, port: str):
        super().__init__(daemon=True)
        self._url = f"http://127.0.0.1:{port}/v1/proxy/distribution"
        self._over = threading.Event()
        self.answers: list[httpx.Response] = []

    def run(self) -> None:
        body = {"adapter": "base", "prompt": [40, 41], "completion": [50], "top_k": 1}
        while not self._over.wait(0.2):
            with contextlib.suppress(httpx.TransportError):  # before Serve is there
                self.answers.append(httpx.post(self._url, json=body, timeout=60))

    def stop(self) -> list[httpx.Response]:
        self._over.set()
        self.join()
        return self.answers


def look_at_dashboard(port: str, run_id: str) -> dict[str, str] | None:
    """What a browser shows of the run at work; None where there is no browser."""
    if shutil.which("chromium") is None:
        return None
    with chromium() as browser, watched_page(browser) as page:
        page.goto(f"http://127.0.0.1:{port}/dashboard/#/runs/{run_id}")
        expect(page.get_by_role("heading", name="Now:")).to_be_visible(timeout=120_000)
        expect(page.locator("#link")).to_have_text("live", timeout=120_000)
        before = page.locator(".log li").count()
        expect(page.locator(".log li").nth(before)).to_be_visible(timeout=400_000)  # one more than before
        return {
            "pipeline": page.locator(".pipeline").inner_text(),
            "fidelity": page.locator("section", has_text="come closer").inner_text(),
            "event": page.locator(".log li").nth(before).inner_text(),
        }


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """The run directory of a run that was stopped after its first round and resumed; and what was printed."""
    folder = tmp_path_factory.mktemp("whole")
    prompts = [json.dumps(row) + "\n" for row in tiny_model.prompts(110)]
    (folder / "prompts.jsonl").write_text("".join(prompts[:90]))
    (folder / "unlabelled.jsonl").write_text("".join(prompts[90:]))
    sections = run_config(str(tiny), str(folder / "runs")).model_dump(mode="json", exclude_defaults=True)
    sections["teacher"]["local"] = {"source": str(tiny), "dtype": "float32"}
    sections["distillation"] |= {"evaluations": 1, "snapshots": True}
    sections["corpus"] |= {"path": None, "prompts": str(folder / "prompts.jsonl")}
    sections["corpus"]["unlabelled"] = str(folder / "unlabelled.jsonl")
    sections["sft"] = {"learning_rate": 2e-3, "schedule": "cosine", "global_batch": 8, "epochs": 2, "evaluations": 2}
    (folder / "c.yaml").write_text(yaml.safe_dump(sections))
    mark = folder.name
    with pytest.MonkeyPatch.context() as patch, nothing_left(folder / "runs"):
        patch.setenv("PROXYKD_TEST_MARK", mark)
        port = str(free_port())
        started = proxykd("run", str(folder / "c.yaml"), "--detach", "--http-port", port)
        assert started.returncode == 0, started.stderr
        [root] = (folder / "runs").iterdir()
        status = json.loads(proxykd("status", str(root), "--json").stdout)
        assert (status["state"], status["alive"]) == ("running", True)
        client = Client(port)
        client.start()
        run = RunDirectory.open(root)
        wait_for(lambda: read_live(run).stage == "warmup", 900)
        assert kill("coordinator", root) == 1
        wait_for(lambda: list(run.pairs(1).glob("*.ok")), 900)
        shards = {path: sha256_file(path.with_suffix(".parquet")) for path in run.pairs(1).glob("*.ok")}
        assert kill("vllm engine", root) == 1
        wait_for(lambda: (root / "stages" / "align-01.json").exists(), 900)
        seen = look_at_dashboard(port, run.id)  # whose next event is round 2's end
        opened = [one.event for one in read_events(run.events)[0] if isinstance(one.event, MetricsOpen)]
        metrics = httpx.get(opened[-1].url).text
        answers = client.stop()
        stopped = proxykd("stop", str(root))
        assert stopped.returncode == 0, stopped.stderr
        assert "finishes the shard or step in hand" in stopped.stdout
        left = processes_naming(mark)
        before = {path.name: path.read_bytes() for path in (root / "stages").glob("*.json")}
        halted = json.loads(proxykd("status", str(root), "--json").stdout)
        resumed = proxykd("resume", str(root), "--http-port", port, timeout=1500)
        yield {
            "root": root,
            "config": folder / "c.yaml",
            "resumed": resumed,
            "before": before,
            "left": left,
            "mark": mark,
            "answers": answers,
            "shards": shards,
            "halted": halted,
            "seen": seen,
            "metrics": metrics,
        }


def test_it_resumes_what_was_not_finished_and_leaves_no_process(finished):
    assert finished["left"] == []
    assert finished["resumed"].returncode == 0, finished["resumed"].stderr
    for name, content in finished["before"].items():
        assert (finished["root"] / "stages" / name).read_bytes() == content
    assert processes_naming(finished["mark"]) == []
    assert "student:" in finished["resumed"].stdout
    assert "round 2" in finished["resumed"].stdout


def test_what_was_killed_came_back_and_nothing_was_done_twice(finished):
    """The coordinator and the engine by themselves, the run by the resume. Every process at once dies in test_study."""
    root = finished["root"]
    claims = [entry for entry in replay(root / "journal") if entry["event"] == "EPOCH_CLAIMED"]
    assert [entry["epoch"] for entry in claims] == [1, 2, 3]
    assert (finished["halted"]["state"], finished["halted"]["alive"]) == ("stopped", False)
    for marker, sha256 in finished["shards"].items():
        assert sha256_file(marker.with_suffix(".parquet")) == sha256
    attempts = {path.stem: read_json(path)["attempts"] for path in (root / "stages").glob("*.json")}
    started = [entry for entry in replay(root / "journal") if entry["event"] == "STAGE_STARTED"]
    begun = Counter(stage_key(one["stage"], one["round"]) for one in started)
    assert attempts == begun
    assert attempts["warmup"] == 2
    assert attempts["align-01"] == 1
    assert not list((root / "checkpoints").rglob("*.pt"))
    assert not list((root / "outcomes").iterdir())


def test_beside_the_run_clients_are_answered_or_told_when_to_come_back(finished):
    """On shared cores: answers while it samples, 503 with a time while it trains or has no engine."""
    answers = [
        answer for answer in finished["answers"] if answer.status_code != 404
    ]  # 404: Serve is up, the front not yet
    assert {answer.status_code for answer in answers} == {200, 503}
    for answer in answers:
        if answer.status_code == 200:
            assert answer.json()["results"][0]["adapter"] == f"{finished['root'].name}-base"
        else:
            assert int(answer.headers["retry-after"]) > 0
    reasons = {answer.json()["error"]["message"].split(" (")[0] for answer in answers if answer.status_code == 503}
    assert any("engine is not up" in reason for reason in reasons)
    assert any("trains on the engine's cores" in reason for reason in reasons)


def test_a_browser_sees_the_run_at_work(finished):
    if finished["seen"] is None:
        pytest.skip(NO_CHROMIUM)
    assert "warmup" in finished["seen"]["pipeline"]
    assert "warm-up" in finished["seen"]["fidelity"]
    assert "done in" in finished["seen"]["event"] or "begins" in finished["seen"]["event"]


def test_rays_agent_exposes_the_runs_metrics(finished):
    run = finished["root"].name
    mine = [line for line in finished["metrics"].splitlines() if f'run="{run}"' in line or f"run='{run}'" in line]
    names = {line.partition("{")[0] for line in mine}
    assert {"ray_proxykd_coordinator_epoch", "ray_proxykd_stage_done", "ray_proxykd_warnings"} <= names
    assert names <= {f"ray_{name}" for name in (*GAUGES, *REPLICA_GAUGES)}
    [epoch] = [line for line in mine if line.startswith("ray_proxykd_coordinator_epoch")]
    assert float(epoch.rpartition(" ")[2]) == 2


def test_a_rounds_pairs_were_looked_at_before_and_after(finished):
    """Their sums are the trainer's own log-probs under the adapters before and after."""
    run = RunDirectory.open(finished["root"])
    config, result = run.config(), ALIGN.finished(run, 2).result
    pairs = read_inspected(run, 2)
    assert len(pairs) == result.pairs
    rows = {row["id"]: row for path in run.pairs(2).glob("*.parquet") for row in read_pairs(path)}
    for when, adapter in (("before", result.reference_adapter), ("after", result.adapter)):
        scorer = load_scorer(run.models / "proxy", config.proxy, adapter=run.adapters / adapter, trainable=False)
        for pair in pairs[:4]:
            row = rows[pair["id"]]
            for side, key in SIDES.items():
                logps = scorer.score(collate([row["prompt_ids"]], [row[key]])).token_logps_N.tolist()
                assert pair[f"{side}_{when}"] == pytest.approx(logps, abs=1e-4)
    tokenizer = load_tokenizer(run.models / "proxy")
    whole = tokenizer.decode(rows[pairs[0]["id"]]["completion_ids"])  # random tokens: some bytes are no text
    assert "".join(pairs[0]["chosen"]).replace("\ufffd", "") == whole.replace("\ufffd", "")


def test_trackers_and_logs_hold_what_the_run_did(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    root = finished["root"]
    board = EventAccumulator(str(root / "tensorboard")).Reload()
    rounds = {event.step: event.value for event in board.Scalars("proxy/held_out_nll")}
    report = read_json(root / "report" / "report.json")
    assert rounds[2] == pytest.approx(report["rounds"][1]["validation"]["held_out_nll"], rel=1e-6)
    assert {"align-01/dpo", "warmup/nll", "sft/nll", "student/held_out_nll"} <= set(board.Tags()["scalars"])
    lines = [json.loads(line) for path in (root / "logs").glob("*.jsonl") for line in path.read_text().splitlines()]
    assert {line["role"] for line in lines} == {"coordinator", "trainer", "engine"}
    assert {line["run"] for line in lines} == {root.name}
    assert any(line["role"] == "trainer" and line["loop"] == "align" and line["round"] == 2 for line in lines)
    assert any(line["role"] == "coordinator" and line.get("stage") == "distil" for line in lines)


def test_the_report_page_is_written(finished):
    page = (finished["root"] / "report" / "report.html").read_text()
    assert finished["root"].name in page
    assert "https://" not in page.replace("https://github.com/leeoniya/uPlot", "")


def test_a_finished_run_is_served_until_it_is_interrupted(finished):
    port, root = str(free_port()), finished["root"]
    command = [str(Path(sys.executable).parent / "proxykd"), "serve", str(root), "--http-port", port]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as serving:
        try:
            lines = []
            while not lines or "Ctrl-C" not in lines[-1]:
                lines.append(serving.stdout.readline())
                assert lines[-1], serving.stderr.read()
            shown = "".join(lines)
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
                known = http.get("/v1/proxy/adapters").json()
                assert all(card["name"] in shown for card in known["adapters"])
                assert known["default"].endswith(read_json(root / "report" / "report.json")["trust"]["adapter"])
                ask = {"messages": [{"role": "user", "content": "the dog?"}], "completion": "a cat"}
                [answer] = http.post("/v1/proxy/distribution", json=ask).raise_for_status().json()["results"]
                assert answer["adapter"] == known["default"]
                assert 0 < answer["sequence"]["trust_weight"] < 1
            again = proxykd("serve", str(root), "--http-port", port)
            assert again.returncode == 2
            assert "served already" in again.stderr
        finally:
            serving.send_signal(signal.SIGTERM)  # as `proxykd stop --serving` does; Ctrl-C has the same handler
            time.sleep(1)
            serving.send_signal(signal.SIGINT)  # of somebody in a hurry
            _, said = serving.communicate(timeout=120)
    assert serving.returncode == 0, said
    assert "SIGTERM" not in said
    assert processes_naming(finished["mark"]) == []
    unknown = proxykd("serve", str(root), "--adapter", "r99")
    assert unknown.returncode == 2
    assert "unknown adapter 'r99'; known:" in unknown.stderr
    open_to_all = proxykd("serve", str(root), "--http-host", "0.0.0.0")
    assert open_to_all.returncode == 2
    assert "reachable from outside" in open_to_all.stderr


def test_the_report_has_every_key_and_its_numbers_hold(finished):
    report = read_json(finished["root"] / "report" / "report.json")
    assert [r["round"] for r in report["rounds"]] == [1, 2]
    for entry in report["rounds"]:
        assert entry["step0_margin_max_abs"] < 1e-3
        assert entry["parity_mean_abs"] < 0.01
        assert set(entry["seconds"]) == {"sample", "reference", "train", "after", "evaluate"}
        assert entry["pairs_after"] == entry["pairs"]
        assert entry["margin_mean_after"] > entry["margin_mean"]  # which has the steps on the way to it
        assert entry["nll_grad_norm"] > 0
        assert entry["dpo_grad_norm"] > 0
    assert report["rounds"][1]["reference_adapter"] == report["rounds"][0]["adapter"]
    warm, last = report["proxy"]["warmup"], report["proxy"]["aligned"]
    assert last["held_out_nll"] < warm["held_out_nll"]
    assert report["student"]["after"]["held_out_nll"] < report["student"]["before"]["held_out_nll"]
    assert report["student"]["loss_share"]["nll"] + report["student"]["loss_share"]["kl"] == pytest.approx(1)
    corpus = report["corpus"]
    assert sum(corpus[k] for k in ("validation", "test", "warmup", "alignment", "distillation")) == corpus["records"]
    assert sum(report["trust"]["histogram"]["counts"]) == corpus["distillation"]
    assert [e["round"] for e in report["sealed_teacher"]["kl_teacher_proxy"]] == [0, 1, 2]
    assert len(report["soft_labels"]["share_mass_over_095"]["share"]) == 50
    assert report["soft_labels"]["answers"]["records"] == 20
    assert report["sft"]["records"] == 2 * sum(corpus[k] for k in ("warmup", "alignment", "distillation"))
    less, students = report["sft"]["student_less_sft"], (report["student"]["after"], report["sft"]["after"])
    assert less["nll"] == pytest.approx(students[0]["held_out_nll"] - students[1]["held_out_nll"], abs=1e-6)
    stages = [s["stage"] for s in report["stages"]]
    assert stages == [
        "models",
        "collect",
        "corpus",
        "warmup",
        "align",
        "align",
        "score",
        "answer",
        "distil",
        "sft",
        "evaluate",
    ]
    assert report["teacher"] == {"model": "tiny-sealed", "parameters": report["teacher"]["parameters"], "local": True}


def test_pairs_were_drawn_from_the_adapter_that_the_round_refers_to(finished):
    import pyarrow.parquet as pq

    root = finished["root"]
    for entry in read_json(root / "report" / "report.json")["rounds"]:
        rows = [
            r
            for p in sorted((root / f"rounds/{entry['round']:02d}/pairs").glob("*.parquet"))
            for r in pq.read_table(p).to_pylist()
        ]
        assert {row["adapter"] for row in rows} == {f"{root.name}-{entry['reference_adapter']}"}
        assert len({row["id"] for row in rows}) == len(rows) == entry["pairs"]


def test_the_student_loads_with_transformers_alone(finished):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    student = finished["root"] / "student"
    verify_directory(student)
    model = AutoModelForCausalLM.from_pretrained(student)
    assert model.config.num_hidden_layers == 2
    assert AutoTokenizer.from_pretrained(student).chat_template


def test_asking_again_says_that_it_is_done(finished):
    root = finished["root"]

    def started():
        return replay(root / "journal"), (root / "logs" / "cluster.log").read_bytes()

    before = started()
    again = proxykd("run", str(finished["config"]))
    assert again.returncode == 0
    assert "is done" in again.stdout
    assert started() == before  # neither a coordinator nor a Ray
    status = json.loads(proxykd("status", str(root), "--json").stdout)
    assert (status["state"], status["alive"]) == ("finished", False)


def test_a_run_that_fails_says_why_and_exits_2(tiny, tmp_path):
    sections = run_config(str(tiny), str(tmp_path / "runs")).model_dump(mode="json", exclude_defaults=True)
    sections["corpus"]["path"] = str(tmp_path / "torn.jsonl")
    (tmp_path / "torn.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{torn\n')
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(sections))
    failed = proxykd("run", str(tmp_path / "c.yaml"), "--http-port", str(free_port()))
    assert failed.returncode == 2
    assert "line 2: not JSON" in failed.stderr
    assert "Traceback" not in failed.stderr
    [root] = (tmp_path / "runs").iterdir()
    assert json.loads(proxykd("status", str(root), "--json").stdout)["state"] == "failed"


def test_a_finished_runs_proxy_and_student_are_benchmarked_side_by_side(finished, tmp_path):
    root = finished["root"]
    row = {"question": "two and two?", "choices": None, "answer": "4"}
    (tmp_path / "gsm8k.jsonl").write_text("".join(json.dumps(row | {"id": f"gsm8k/test/{i}"}) + "\n" for i in range(4)))
    options = ("--tasks", "gsm8k", "--data-dir", str(tmp_path), "--engine", "transformers", "--max-length", "256")
    told = proxykd("evaluate", str(root), *options)
    assert told.returncode == 0, told.stderr
    scores = read_json(root / "report" / "report.json")["benchmarks"]
    [(step, snapshot)] = RunDirectory.open(root).snapshots().items()
    assert {name: score["gsm8k"]["n"] for name, score in scores.items()} == {
        "proxy": 4,
        "student": 4,
        f"student@{step}": 4,
    }
    assert sha256_file(snapshot / "model.safetensors") == sha256_file(root / "student" / "model.safetensors")
    assert scores[f"student@{step}"] == scores["student"]
    assert read_json(root / "benchmarks" / "results.json")["results"] == scores
