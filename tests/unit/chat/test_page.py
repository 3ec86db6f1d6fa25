"""The page's routes: what they stream, what they refuse, that a reader who goes away stops the models."""

from __future__ import annotations

import json
import threading
import time

import httpx
import pytest
import uvicorn
from fastapi.testclient import TestClient

from proxykd.models.speaker import Sampling
from services.chat.page import chat_app
from services.cli.chat import Chosen, open_speakers
from tests.object_store import free_port
from tests.ray_nodes import wait_for
from tests.scripted_speaker import NEVER_ENDING, scripted_speaker

HERE = "http://127.0.0.1:8200"
ASK = [{"role": "user", "content": "one two three?"}]


@pytest.fixture
def client():
    speakers = {"student": scripted_speaker("naïve 日本\n🎉")[0], "base": scripted_speaker("x", context=30)[0]}
    return TestClient(chat_app("a-run", speakers, Sampling(0.5, 99), "127.0.0.1"), HERE)


def said(response):
    assert response.status_code == 200, response.text
    texts = {}
    for line in response.text.splitlines():
        one = json.loads(line)
        texts[one["model"]] = texts.get(one["model"], "") + one["text"]
    return texts


def test_the_page_is_told_who_is_there_and_how_they_are_asked(client):
    assert client.get("/v1/models").json() == {
        "run": "a-run",
        "models": [
            {"name": "student", "who": "what the run is for"},
            {"name": "base", "who": "the student's model as it began"},
        ],
        "temperature": 0.5,
        "max_tokens": 99,
    }


def test_tokens_come_as_lines_of_json(client):
    answered = client.post("/v1/answers", json={"conversations": {"student": ASK, "base": ASK}})
    assert answered.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in answered.text.splitlines()]
    assert [line["model"] for line in lines[:4]] == ["student", "base", "student", "base"]
    assert [line["ended"] for line in lines if line["model"] == "base"][-1] == "stop"
    assert said(answered) == {"student": "naïve 日本\n🎉", "base": "x"}


def test_a_runs_own_models_answer_as_in_the_terminal(run):
    speakers = open_speakers(Chosen(str(run.root), ("student", "proxy")))
    client = TestClient(chat_app(run.id, speakers, Sampling(), "127.0.0.1"), HERE)
    talk = [*ASK, {"role": "assistant", "content": "red"}, *ASK]
    question = {"conversations": dict.fromkeys(speakers, talk), "max_tokens": 9}
    expected = {
        name: "".join(one.text for one in speaker.reply(talk, Sampling(0, 9))) for name, speaker in speakers.items()
    }
    assert said(client.post("/v1/answers", json=question)) == expected


@pytest.mark.parametrize(
    ("question", "told"),
    [
        ({"conversations": {"teacher": ASK}}, "a-run has no 'teacher' here; it has student, base"),
        ({"conversations": {}}, "conversations"),
        ({"conversations": {"student": []}}, "conversations"),
        ({"conversations": {"student": ASK}, "temperature": 9}, "temperature"),
        ({"conversations": {"student": ASK}, "max_tokens": 0}, "max_tokens"),
        (
            {"conversations": {"student": [{"role": "user", "content": "\ud800"}]}},
            "student: the conversation holds half",
        ),
        ({"conversations": {"base": [{"role": "user", "content": "the red " * 30}]}}, "base: the conversation has"),
        ({"conversations": {"student": [{"role": "teacher", "content": "x"}]}}, "conversations"),
    ],
)
def test_what_cannot_be_asked_says_why(client, question, told):
    refused = client.post(
        "/v1/answers", content=json.dumps(question).encode(), headers={"Content-Type": "application/json"}
    )
    assert refused.status_code == 400
    assert told in refused.json()["error"]["message"]


def test_other_sites_and_large_bodies_are_refused(client):
    question = {"conversations": {"student": ASK}}
    assert client.post("/v1/answers", json=question, headers={"Host": "evil.example"}).status_code == 421
    assert client.post("/v1/answers", json=question, headers={"Origin": "http://evil.example"}).status_code == 403
    assert client.post("/v1/answers", content=b"x" * (2**20 + 1)).status_code == 413


def test_the_pages_files_run_no_script_but_their_own(client):
    page = client.get("/")
    assert "script-src 'self'" in page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    for path in ("chat.js", "chat.css", "dashboard/dom.js", "dashboard/style.css"):
        assert client.get(f"/{path}").status_code == 200
    for path in ("docs", "redoc", "openapi.json"):
        assert client.get(f"/{path}").status_code == 404


def test_whoever_goes_away_stops_the_models_and_the_next_is_answered():
    speaker, model = scripted_speaker(NEVER_ENDING, "the cat", context=10**9, pause_s=0.01)
    app = chat_app("a-run", {"student": speaker}, Sampling(), "127.0.0.1")
    server = uvicorn.Server(uvicorn.Config(app, port=free_port(), log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.started, 20, "the page")
        url = f"http://127.0.0.1:{server.config.port}/v1/answers"
        question = {"conversations": {"student": ASK}, "max_tokens": 10**6}
        began = time.monotonic()
        with httpx.stream("POST", url, json=question) as answered:
            first = next(answered.iter_lines())
        assert json.loads(first)["tokens"] == 1
        assert said(httpx.post(url, json=question)) == {"student": "the cat"}
        assert time.monotonic() - began < 10
        assert len(model.heard) == 2
    finally:
        server.should_exit = True
        thread.join()
