"""The student's REST front: an engine that says what it is told, and a teacher over real HTTP that fails on demand."""

from __future__ import annotations

import json
import math
import shutil
import stat
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from fastapi.testclient import TestClient

from actors.engine.openai_front import Opening
from actors.engine.proxy_engine import EngineSpec
from proxykd.certification.doubt import Doubt
from proxykd.certification.doubt_files import student_digest
from proxykd.collection.providers import chat_body
from proxykd.collection.requests import Request
from proxykd.config import HELD_OUT
from proxykd.data.label_shards import CompletionLogps
from proxykd.errors import EngineError
from proxykd.models.loading import initialise
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import READY, write_json
from proxykd.text.chat import ChatFormat
from proxykd.text.corpus import prompt_key, slice_of
from proxykd.text.layouts import read_conversation
from proxykd.text.tokenizer import load_tokenizer
from services.cli.main import main
from services.rest.engine_service import ServiceSpec
from services.rest.fall_back import FallBack
from services.rest.student_api import build_student_app
from services.rest.student_service import StudentService
from tests.collecting import config_for
from tests.other_tokenizer import other_model
from tests.small_run import run_config
from tests.teacher_stub import KEY, teacher_stub

ROOT = Path(__file__).parents[2]
SURE, UNSURE = -0.01, -3.0
BUDGET = {"budget": {"tokens": 100_000}}


class FakeEngine:
    """Stands for a Serve handle. It answers `said`, whose every token has the log-prob `logp`."""

    def __init__(self):
        self.said, self.logp, self.fault, self.bodies, self.scored = "a red dog", SURE, None, [], []
        self.openai = self.score = self
        self.metrics = Figures()

    def options(self, **_):
        return Streams(self)

    @property
    def remote(self):
        return self._score

    async def _score(self, name, prompts, completions, **_):
        if self.fault is not None:
            raise self.fault
        self.scored.append((name, prompts[0], completions[0]))
        size = len(completions[0])
        return [CompletionLogps(np.full(size, self.logp), *[np.zeros((size, 1))] * 2, np.zeros(size), name)]


class Figures:
    async def remote(self):
        return "vllm:fake 1.0\n"


class Streams:
    def __init__(self, engine):
        self.openai, self.engine = self, engine

    async def remote(self, route, name, body, deadline_s):
        self.engine.bodies.append(body)
        if self.engine.fault is not None:
            raise self.engine.fault
        if body.get("stream"):
            yield Opening(200, None)
            yield "data: the student's own\n\n"
            return
        message = {"role": "assistant", "content": self.engine.said}
        yield Opening(200, json.dumps({
            "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": name,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
        }))  # fmt: skip


@pytest.fixture
def run(tiny, tmp_path) -> RunDirectory:
    run = RunDirectory.create(run_config(str(tiny), str(tmp_path / "runs")))
    shutil.copytree(tiny, run.student)
    write_json(run.student / "manifest.json", {"files": {"model.safetensors": "5" * 64}})
    (run.student / READY).touch()
    return run


def doubt_for(run, certified=()) -> Doubt:
    """By the mean log-prob alone: 0.50 for what is sure, 0.95 for what is not."""
    return Doubt(
        student_sha256=student_digest(run), means=[0.0] * 3, scales=[1.0] * 3, weights=[-1.0, 0.0, 0.0], intercept=0.0,
        thresholds=[1.1] + [0.9] * 50 + [0.0] * 50, prompts=100, certified=list(certified),
    )  # fmt: skip


@contextmanager
def front(run, config=None, keep=None, certified=(), proxy=None):
    """(client, engine): within one event loop, as Serve has it. `proxy` is the engine of a doubt that reads its
    log-probs alone."""
    engine = FakeEngine()
    name = EngineSpec.of_student(run, run.config()).adapter_name(None)
    spec = ServiceSpec(str(run.root), name, max_length=96, beside_run=False, shares_cores=False, deadline_s=5.0)
    doubt = doubt_for(run, certified)
    if proxy is not None:
        more = {"proxy": "base", "means": [0.0] * 6, "scales": [1.0] * 6, "weights": [0.0] * 3 + doubt.weights}
        doubt = doubt.model_copy(update=more)
    fall_back = config and FallBack(config, doubt, 0.9, keep and str(keep))
    app = build_student_app(StudentService(spec, lambda: engine, fall_back, lambda: proxy))
    with TestClient(app, "http://127.0.0.1:8000", raise_server_exceptions=False) as client:
        yield client, engine


def ask(client, text="what is the red dog", **more):
    return client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": text}], **more})


def mark_of(answer):
    assert answer.status_code == 200, answer.text
    told = answer.json()["proxykd"]
    assert answer.headers["x-proxykd-answered-by"] == told["answered_by"]
    assert answer.headers["x-proxykd-why"] == told["why"]
    return told["answered_by"], told["why"]


def test_without_a_fall_back_it_is_a_model_like_any_other(run):
    with front(run) as (client, engine):
        answer = ask(client)
        assert answer.json()["choices"][0]["message"]["content"] == "a red dog"
        assert "proxykd" not in answer.json()
        assert not [name for name in answer.headers if name.startswith("x-proxykd")]
        assert engine.scored == []
        assert engine.bodies[-1]["temperature"] == 0.0  # as the certificate's answers
        ask(client, temperature=0.7)
        assert engine.bodies[-1]["temperature"] == 0.7
        assert "the student's own" in ask(client, stream=True).text
        [card] = client.get("/v1/models").json()["data"]
        assert (card["id"], card["aliases"]) == (f"{run.id}-student", ["student"])
        assert client.get("/v1/models/student").json() == card
        assert ask(client, model=card["id"]).status_code == 200
        other = ask(client, model="gpt")
        assert other.status_code == 404
        assert f"known: {run.id}-student, student" in other.json()["error"]["message"]
        assert client.post("/v1/completions", json={"prompt": "the"}).status_code == 200
        assert client.get("/healthz").status_code == 200
        assert not run.fall_back.exists()


def test_the_doubtful_prompts_alone_are_the_teachers(run):
    with teacher_stub(key=KEY) as stub, pytest.MonkeyPatch.context() as patch:
        patch.setenv("STUB_KEY", KEY)
        config = config_for(stub, {"api_key_env": "STUB_KEY", "system": "Be brief."}, **BUDGET)
        with front(run, config) as (client, engine):
            assert mark_of(ask(client)) == ("student", "confident")
            name, prompt, completion = engine.scored[-1]
            assert name == f"{run.id}-student"
            assert prompt == engine.bodies[-1]["prompt_token_ids"]
            assert len(completion) > 1
            assert stub.stats()["answered"] == 0
            engine.logp = UNSURE
            answer = ask(client)
            assert mark_of(answer) == ("teacher", "doubtful")
            assert answer.json()["model"] == "stub-1"
            assert answer.json()["proxykd"]["doubt"] == pytest.approx(1 / (1 + math.exp(-3)), abs=1e-4)
            assert float(answer.headers["x-proxykd-doubt"]) == answer.json()["proxykd"]["doubt"]
            assert answer.json()["choices"][0]["message"]["content"] != "a red dog"
            assert answer.json()["usage"]["total_tokens"] > 0
            assert stub.stats()["answered"] == 1
            told = client.get("/metrics").text
            assert 'proxykd_chat_answers_total{by="teacher",why="doubtful"} 1.0' in told
    assert not list(run.root.parent.parent.glob("*.jsonl"))  # nothing is kept
    kept = "".join(path.read_text() for path in run.root.rglob("*.jsonl"))
    assert '"text": ""' in kept  # what it cost, and nothing that was said
    assert "red dog" not in kept


def test_the_proxy_reads_what_the_student_says_where_the_doubt_is_its_too(run, tiny):
    """In the proxy's tokens; a conversation that leaves it no room is in doubt."""
    other_model(run.student)
    initialise(run.config().proxy, run.models / "proxy")
    theirs, ours = (ChatFormat(load_tokenizer(folder)) for folder in (run.student, run.models / "proxy"))
    proxy = FakeEngine()
    with teacher_stub() as stub, front(run, config_for(stub, **BUDGET), proxy=proxy) as (client, engine):
        assert mark_of(ask(client)) == ("student", "confident")
        proxy.logp = UNSURE
        assert mark_of(ask(client)) == ("teacher", "doubtful")
        for one, chat, name in ((engine, theirs, f"{run.id}-student"), (proxy, ours, f"{run.id}-base")):
            prompt = chat.prompt_ids([{"role": "user", "content": "what is the red dog"}])
            assert one.scored == [(name, prompt, chat.completion_ids("a red dog"))] * 2
        long = "the" + " the" * 40
        lengths = [len(chat.prompt_ids([{"role": "user", "content": long}])) for chat in (theirs, ours)]
        assert lengths[0] < 90 < 96 <= lengths[1]
        proxy.logp = SURE
        answer = ask(client, long)
        assert mark_of(answer) == ("teacher", "doubtful")
        assert answer.json()["proxykd"]["doubt"] == 1.0
        proxy.fault = EngineError("it is gone")
        asked = stub.stats()["answered"]
        answer = ask(client)
        assert mark_of(answer) == ("student", "proxy")
        assert answer.json()["choices"][0]["message"]["content"] == "a red dog"
        assert stub.stats()["answered"] == asked


def test_what_a_client_allows_is_what_the_teacher_is_asked_for(run):
    config = config_for(type("Stub", (), {"base_url": "http://127.0.0.1:9/v1"}))
    request = Request("k", "k", "k", 0, ({"role": "user", "content": "x"},), 1, 5)
    assert chat_body(config.teacher, request)["max_tokens"] == 5
    assert chat_body(config.teacher, replace(request, max_tokens=None))["max_tokens"] == 32


def test_a_budget_holds_over_a_restart(run):
    with teacher_stub() as stub:
        config = config_for(stub, budget={"tokens": 200})  # worst cases: bytes and limits
        answers = []
        for _ in range(2):
            with front(run, config) as (client, engine):
                engine.logp = UNSURE
                for _ in range(8):
                    answers.append(ask(client))
        marks = [mark_of(answer) for answer in answers]
        spent = marks.count(("teacher", "doubtful"))
        assert 1 <= spent < 8
        assert marks[spent:] == [("student", "budget")] * (16 - spent)
        assert answers[-1].json()["choices"][0]["message"]["content"] == "a red dog"
        assert stub.stats()["answered"] == spent
        assert stub.stats()["tokens"] <= 200


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("503", "down"),
        ("reset", "down"),
        ("401", "down"),
        ("hang", "down"),
        ("no choices", "down"),
        ("429 with Retry-After", "pace"),
    ],
)
def test_a_teacher_that_is_not_to_be_had_leaves_the_students_answer(fault, why, run, caplog):
    with teacher_stub(always=fault) as stub, front(run, config_for(stub, timeout_s=1.0, **BUDGET)) as (client, engine):
        engine.logp = UNSURE
        first = ask(client)
        assert mark_of(first) == ("student", why)
        assert first.json()["choices"][0]["message"]["content"] == "a red dog"
        if why == "down":
            attempts = sum(stub.stats()["faults"].values())
            assert mark_of(ask(client)) == ("student", "down")
            assert sum(stub.stats()["faults"].values()) == attempts  # it is left alone for a while
    assert {record.facts["why"] for record in caplog.records if hasattr(record, "facts")} == {why}


def test_no_word_of_the_key_gets_out(run, caplog):
    """The stub repeats a key that is wrong."""
    with teacher_stub(key=KEY) as stub, pytest.MonkeyPatch.context() as patch:
        wrong = "sk-wrong-9876543210zyxwvu"
        patch.setenv("STUB_KEY", wrong)
        with front(run, config_for(stub, {"api_key_env": "STUB_KEY"}, **BUDGET)) as (client, engine):
            engine.logp = UNSURE
            answer = ask(client)
            assert mark_of(answer) == ("student", "down")
        seen = (
            caplog.text + answer.text + str(answer.headers) + "".join(p.read_text() for p in run.root.rglob("*.jsonl"))
        )
        assert "HTTP 401" in seen
        assert not [at for at in range(len(wrong) - 6) if wrong[at : at + 6] in seen]


def test_answers_are_kept_when_asked_for_and_never_of_held_out_prompts(run, tmp_path):
    texts = [f"what is item {i}" for i in range(60)]
    slices = {text: slice_of(({"role": "user", "content": text},), run.config().corpus) for text in texts}
    held_out = [text for text in texts if slices[text] in HELD_OUT]
    learned = [text for text in texts if slices[text] not in HELD_OUT][:6]
    assert {slices[text] for text in held_out} == set(HELD_OUT)
    certified = learned.pop()
    file = tmp_path / "kept.jsonl"
    file.touch(0o644)
    with teacher_stub() as stub:
        config = config_for(stub, **BUDGET)
        keys = [prompt_key(({"role": "user", "content": certified},))]
        with front(run, config, keep=file, certified=keys) as (client, engine):
            engine.logp = UNSURE
            said = {text: ask(client, text).json() for text in [*held_out[:8], certified, *learned]}
            assert {answer["proxykd"]["answered_by"] for answer in said.values()} == {"teacher"}
            engine.logp = SURE
            ask(client, "what is item 99")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    found = [read_conversation(row) for row in rows]
    assert [one.messages[-1]["content"] for one in found] == learned
    assert [one.reply["content"] for one in found] == [said[t]["choices"][0]["message"]["content"] for t in learned]


def test_a_stream_is_whoevers_the_whole_answer_is(run):
    with teacher_stub() as stub, front(run, config_for(stub, **BUDGET)) as (client, engine):
        for engine.logp, by in ((SURE, "student"), (UNSURE, "teacher")):
            answer = ask(client, stream=True, stream_options={"include_usage": True})
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert answer.headers["x-proxykd-answered-by"] == by
            *lines, done = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
            assert done == "[DONE]"
            first, last, usage = map(json.loads, lines)
            assert first["proxykd"]["answered_by"] == by
            assert first["object"] == "chat.completion.chunk"
            assert (first["choices"][0]["delta"]["content"] == "a red dog") == (by == "student")
            assert last["choices"][0]["finish_reason"] == "stop"
            assert usage["usage"]["total_tokens"] > 0
            assert "stream" not in engine.bodies[-1]


@pytest.mark.parametrize("more", [{"logprobs": True}, {"n": 2}, {"stop": "x"}, {"logit_bias": {"5": 1.0}}])
def test_what_the_teacher_cannot_give_is_the_students_alone(more, run):
    with teacher_stub() as stub:
        with front(run, config_for(stub, **BUDGET)) as (client, engine):
            engine.logp = UNSURE
            answer = ask(client, **more)
            assert answer.headers["x-proxykd-answered-by"] == "student"
            assert answer.headers["x-proxykd-why"] == "fields"
            assert "x-proxykd-doubt" not in answer.headers
        assert stub.stats()["answered"] == 0


def test_an_engine_that_is_gone_is_a_503_with_a_fall_back_too(run):
    with teacher_stub() as stub, front(run, config_for(stub, **BUDGET)) as (client, engine):
        engine.fault = EngineError("gone")
        assert ask(client).status_code == 503
        engine.fault = None
        assert ask(client, "x " * 200).status_code == 400


def written(path: Path, **sections) -> Path:
    teacher = {"model": "t", "base_url": "http://127.0.0.1:9/v1", "max_tokens": 32} | sections.pop("teacher", {})
    path.write_text(yaml.safe_dump({"teacher": teacher, "collection": BUDGET} | sections))
    return path


@pytest.mark.parametrize(
    ("sections", "arguments", "said"),
    [
        ({}, ["--defer", "0.1", "--threshold", "0.5"], "--fall-back takes either --defer SHARE or --threshold DOUBT"),
        ({}, [], "--fall-back takes either --defer SHARE or --threshold DOUBT"),
        ({"collection": {}}, ["--defer", "0.1"], "nothing bounds what clients may spend; set collection.budget.tokens"),
        ({"collection": BUDGET | {"batch": {}}}, ["--defer", "0.1"], "collection.batch answers within a day"),
        ({"teacher": {"base_url": None}}, ["--defer", "0.1"], "teacher.base_url is not set"),
        ({"teacher": {"base_url": "default"}}, ["--defer", "0.1"], "no API key: set $OPENAI_API_KEY"),
    ],
)  # fmt: skip
def test_a_fall_back_that_cannot_be_is_refused_before_anything_starts(sections, arguments, said, run, tmp_path):
    write_json(run.root / "report" / "certificate.json", {})
    write_json(run.root / "report" / "doubt.json", doubt_for(run).model_dump())
    config = written(tmp_path / "teacher.yaml", **sections)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("OPENAI_API_KEY", raising=False)
        done = CliRunner().invoke(main, ["serve-student", str(run.root), "--fall-back", str(config), *arguments])
    assert done.exit_code == 2
    assert said in " ".join(done.output.split()), done.output


def test_ray_is_not_loaded_before_it_is_started(run, tmp_path):
    """It reads its token as it is imported: one that is loaded before never reaches the cluster of its own run."""
    config = tmp_path / "t.yaml"
    config.write_text(yaml.safe_dump({
        "teacher": {"model": "m", "base_url": "http://127.0.0.1:1/v1", "terms": "none"},
        "collection": {"budget": {"tokens": 9}},
    }))  # fmt: skip
    write_json(run.report.parent / "certificate.json", {})
    write_json(run.report.parent / "doubt.json", doubt_for(run).model_dump())
    asked = f"""
import sys
from services.cli import student_serving
from services.cli.main import main
student_serving.hold = lambda *_: print("held, Ray loaded:", "ray" in sys.modules)
main(["serve-student", {str(run.root)!r}, "--fall-back", {str(config)!r}, "--defer", "0.1"])
"""
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, cwd=ROOT)
    assert "held, Ray loaded: False" in done.stdout, done.stderr


def test_without_a_certificate_of_this_student_nobody_falls_back(run, tmp_path):
    command = ["serve-student", str(run.root), "--fall-back", str(written(tmp_path / "t.yaml")), "--defer", "0.1"]
    done = CliRunner().invoke(main, command)
    assert (
        f"{run.id} has no certificate, which tells when its student is in doubt; first: proxykd certify" in done.output
    )
    write_json(run.root / "report" / "certificate.json", {})
    assert "has no such doubt: is of before there was one" in CliRunner().invoke(main, command).output
    other = doubt_for(run).model_copy(update={"student_sha256": "7" * 64})
    write_json(run.root / "report" / "doubt.json", other.model_dump())
    assert "is of the student 777777777777, and the run's student is" in CliRunner().invoke(main, command).output
    alone = CliRunner().invoke(main, ["serve-student", str(run.root), "--keep-answers", "x"])
    assert "are for a teacher; name it with --fall-back" in alone.output
    (run.student / READY).unlink()
    assert "has no student yet; go on with: proxykd resume" in CliRunner().invoke(main, command[:2]).output
