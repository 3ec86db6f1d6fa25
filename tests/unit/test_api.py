"""The REST front against an engine that fails on demand: every failure is a status, and nothing hangs or leaks."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from fastapi.testclient import TestClient
from ray.exceptions import ActorDiedError

from actors.cluster.http_options import HttpOptions
from actors.engine.openai_front import Opening
from actors.engine.proxy_engine import CompletionLogps, Switching
from proxykd.errors import ConfigError, EngineError, IntegrityError
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import write_json
from proxykd.stages.score import SCORE
from services.access.keys import key_digests, require_keys_beyond_loopback
from services.dashboard.redis_of_run import redis_of_config
from services.rest.api import build_app
from services.rest.engine_service import ServiceSpec
from services.rest.proxy_service import ProxyService
from tests.small_run import run_config
from tests.stage_results import finish, labels
from tests.unit.test_catalogue import fake_adapter

KEY = "a-key-of-some-length"
QUESTION = {"prompt": [1, 5], "completion": [7, 8, 9], "top_k": 2}


class FakeEngine:
    """Stands for a Serve handle; `fault` is raised by whatever is asked."""

    def __init__(self):
        self.fault = None
        self.asked = []
        self.score = self
        self.probe = self
        self.metrics = Told(self, "vllm:fake 1.0\n")
        self.switching = Told(self, Switching("merged", True, "the-loaded-one", 4.5))
        self.openai = Streams(self)

    def options(self, **_):
        return self

    async def _answer(self, name, **request):
        self.asked.append(name)
        if self.fault is not None:
            raise self.fault
        if isinstance(name, float):
            return "the-loaded-one"
        [ids] = request["completions"]
        k = request["top_k"]
        top = np.log(np.tile([0.5, 0.2, 0.1][:k], (len(ids), 1)))
        tail = np.log1p(-np.exp(top).sum(1))
        ranks = np.arange(1, len(ids) + 1)
        [picked] = request["token_ids"] or [None]
        asked = picked and [[-float(i) for i in at] for at in picked]
        likeliest = np.tile([4, 5, 6][:k], (len(ids), 1))
        return [CompletionLogps(np.full(len(ids), -2.0), likeliest, top, tail, name, ranks, asked)]

    def remote(self, name, **request):
        return self._answer(name, **request)


class Told:
    def __init__(self, engine, answer):
        self._engine, self._answer = engine, answer

    async def remote(self):
        if self._engine.fault is not None:
            raise self._engine.fault
        return self._answer


class Streams:
    def __init__(self, engine):
        self._engine = engine

    async def remote(self, route, name, body, deadline_s):
        if self._engine.fault is not None:
            raise self._engine.fault
        yield Opening(200, None if body.get("stream") else json.dumps({"model": name}), 4.5)
        if body.get("stream"):
            yield "data: one\n\n"
            if body.get("seed") == 13:
                raise EngineError("gone")
            yield "data: [DONE]\n\n"


@pytest.fixture
def front(tiny, tmp_path):
    """(client, engine, spec, run): the app over a run with two adapters."""
    run = RunDirectory.create(run_config(str(tiny), str(tmp_path)))
    (run.models / "proxy").parent.mkdir(parents=True)
    (run.models / "proxy").symlink_to(tiny)
    for number in (0, 1):
        fake_adapter(run, number)
    engine = FakeEngine()
    spec = ServiceSpec(str(run.root), "base", max_length=20, beside_run=False, shares_cores=True, deadline_s=1.0)

    def client(**changes):
        app = build_app(ProxyService(replace(spec, **changes), lambda: engine), redis_of_config)
        return TestClient(app, "http://127.0.0.1:8000", raise_server_exceptions=False)

    return client, engine, run


def test_a_distribution_by_independent_arithmetic(front):
    client, engine, run = front
    finish(run, SCORE, labels("r01", -4.0, 2.0))
    answer = client().post("/v1/proxy/distribution", json=QUESTION | {"adapters": ["base", "r01", "base"]}).json()
    assert [r["adapter"] for r in answer["results"]] == engine.asked
    assert [name.split("-")[-2 if "r01" in name else -1] for name in engine.asked] == ["base", "r01"]
    one = answer["results"][0]
    assert one["sequence"]["logprob"] == pytest.approx(-6.0)
    assert one["sequence"]["z_score"] == pytest.approx(-1.0)
    assert one["sequence"]["trust_weight"] == pytest.approx(1 / (1 + math.e))
    token = one["tokens"][1]
    assert (token["token_id"], token["rank"]) == (8, 2)
    least = -(0.5 * math.log(0.5) + 0.2 * math.log(0.2) + 0.3 * math.log(0.3))
    assert token["tail_mass"] == pytest.approx(0.3)
    assert token["entropy_at_least"] == pytest.approx(least)
    assert token["entropy_at_most"] == pytest.approx(least + 0.3 * math.log(320 - 2))


def test_before_there_is_an_aligned_adapter_nobody_is_the_default(front):
    client, _, run = front
    facts = client(default_adapter="aligned").get("/v1/proxy/adapters").json()
    assert facts["default"] is None
    assert [card["aliases"] for card in facts["adapters"]] == [["base"], ["warmup"], ["r01"]]
    assert client().get("/v1/proxy/adapters").json()["default"] == f"{run.id}-base"
    assert client(default_adapter="aligned").post("/v1/completions", json={"prompt": "x"}).status_code == 404


def test_what_a_switch_of_adapters_costs_is_told(front):
    client, engine, _ = front
    told = client().get("/v1/proxy/adapters").json()["switching"]
    assert told == {"mode": "merged", "takes_turns": True, "loaded": "the-loaded-one", "last_switch_s": 4.5}
    answer = client().post("/v1/completions", json={"prompt": "x"})
    assert answer.headers["x-proxykd-adapter-waited"] == "4.500"
    engine.fault = EngineError("gone")
    assert client().get("/v1/proxy/adapters").json()["switching"] is None


def test_without_a_completion_the_next_token_is_told(front):
    client, _, _ = front
    [one] = client().post("/v1/proxy/logits", json={"prompt": "the", "top_k": 3}).json()["results"]
    assert one["sequence"] is None
    assert len(one["next_token"]["top"]) == 3
    assert "rank" not in one["next_token"]


def test_ids_that_a_student_picked_are_told_in_the_order_that_they_were_asked_in(front):
    client, _, _ = front
    http = client()
    told = http.post("/v1/proxy/distribution", json=QUESTION | {"token_ids": [[9, 3, 9], [], [1]]}).json()["results"][0]
    assert [token["asked"] for token in told["tokens"]] == [[-9.0, -3.0, -9.0], [], [-1.0]]
    next_one = http.post("/v1/proxy/distribution", json={"prompt": [1, 5], "token_ids": [[8, 2]]}).json()["results"][0]
    assert next_one["next_token"]["asked"] == [-8.0, -2.0]
    assert "asked" not in http.post("/v1/proxy/distribution", json=QUESTION).json()["results"][0]["tokens"][0]


def test_several_adapters_are_asked_one_after_the_other_and_the_loaded_one_first(front):
    """However the lines mix them: with merged weights each change of adapter is a switch of seconds."""
    client, engine, run = front
    warmup, r01 = sorted(path.name for path in run.adapters.iterdir())[::-1]
    engine.switching = Told(engine, Switching("merged", True, f"{run.id}-{r01}", 4.5))
    lines = [{"adapters": ["base", "r01"]}, {"adapter": "warmup"}, {"adapters": ["r01", "base"]}, {"adapter": "r01"}]
    answer = client().post(
        "/v1/proxy/distribution",
        content="\n".join(json.dumps(QUESTION | line) for line in lines),
        headers={"content-type": "application/x-ndjson"},
    )
    assert engine.asked == [f"{run.id}-{name}" for name in (r01, r01, r01, "base", "base", warmup)]
    told = [[one["adapter"] for one in json.loads(line)["results"]] for line in answer.text.splitlines()]
    assert told == [[f"{run.id}-{n}" for n in names] for names in (["base", r01], [warmup], [r01, "base"], [r01])]


def test_who_takes_the_first_model_for_the_served_one_is_right(front):
    client, _, run = front
    first = client(default_adapter="r01").get("/v1/models").json()["data"][0]
    assert "r01" in first["aliases"]
    assert client().get("/v1/models").json()["data"][0]["id"] == f"{run.id}-base"
    assert client().get("/health").status_code == 200


def test_lines_are_answered_in_order_each_error_by_itself(front):
    client, _, _ = front
    lines = [json.dumps(QUESTION), "{not json", json.dumps(QUESTION | {"adapter": "nobody"}), json.dumps(QUESTION)]
    answer = client().post(
        "/v1/proxy/distribution", content="\n".join(lines), headers={"content-type": "application/x-ndjson"}
    )
    kinds = [next(iter(json.loads(line))) for line in answer.text.splitlines()]
    assert kinds == ["object", "error", "error", "object"]
    assert (
        client()
        .post("/v1/proxy/distribution", content="\n" * 5, headers={"content-type": "application/x-ndjson"})
        .status_code
        == 400
    )


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (EngineError("died"), 503),
        (ActorDiedError(), 503),
        (TimeoutError(), 504),
    ],
)
def test_engine_failures_become_statuses_with_a_time_to_come_back(front, fault, status):
    client, engine, _ = front
    engine.fault = fault
    http = client()
    for path, body in (
        ("/v1/proxy/distribution", QUESTION),
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "stream": True}),
    ):
        answer = http.post(path, json=body)
        assert answer.status_code == status, answer.text
        assert int(answer.headers["retry-after"]) > 0
        assert answer.json()["error"]["message"]
    assert http.get("/readyz").status_code == status
    assert http.get("/healthz").status_code == 200
    assert f'status="{status}"' in http.get("/metrics").text
    assert "proxykd_requests_in_flight 0.0" in http.get("/metrics").text


def test_an_adapter_that_is_not_what_its_manifest_says_is_no_answer(front):
    client, engine, run = front
    engine.fault = IntegrityError(f"{run.adapters}/r01-00000001/x is not the file that its manifest names")
    answer = client().post("/v1/proxy/distribution", json=QUESTION)
    assert answer.status_code == 503
    assert "cannot be taken up (IntegrityError)" in answer.json()["error"]["message"]
    assert str(run.root) not in answer.text


def test_a_failure_in_the_middle_of_a_stream_is_an_event(front):
    client, _, _ = front
    answer = client().post("/v1/completions", json={"prompt": "x", "stream": True, "seed": 13})
    assert answer.status_code == 200
    first, error, done = answer.text.strip().split("\n\n")
    assert (first, done) == ("data: one", "data: [DONE]")
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "503"


def test_a_full_house_is_told_to_come_back(front):
    client, _, _ = front
    answer = client(max_in_flight=0).post("/v1/proxy/distribution", json=QUESTION)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")


@pytest.mark.parametrize(
    ("live", "shares_cores", "status"),
    [
        ({}, True, 503),
        ({"stage": "distil", "engine": False}, True, 503),
        ({"stage": "align", "engine": True, "training": True}, True, 503),
        ({"stage": "align", "engine": True, "training": True}, False, 200),
        ({"stage": "align", "engine": True, "training": False}, True, 200),
    ],
)
def test_beside_a_run_clients_wait_for_the_engine_and_for_shared_cores(front, live, shares_cores, status):
    client, _, run = front
    if live:
        write_json(run.live, live)
    answer = client(beside_run=True, shares_cores=shares_cores).post("/v1/proxy/distribution", json=QUESTION)
    assert answer.status_code == status
    assert status == 200 or int(answer.headers["retry-after"]) > 0


def test_the_docs_page_needs_no_network_and_its_document_a_key(front):
    http = front[0](key_digests=(hashlib.sha256(KEY.encode()).hexdigest(),))
    page = http.get("/docs")
    assert page.url.path == "/docs/"
    for path in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        if not path.startswith("data:"):
            assert not path.startswith(("http", "/"))
            assert http.get(f"/docs/{path}").status_code == 200, path
    assert "unpkg" not in page.text
    assert "cdn" not in page.text
    assert "connect-src 'self'" in page.headers["content-security-policy"]
    assert http.get("/openapi.json").status_code == 401


def test_keys_are_asked_for_everywhere_but_health(front, tmp_path, monkeypatch):
    client, _, _ = front
    (tmp_path / "keys").write_text(f"{KEY}\nanother-key-of-length\n")
    http = client(key_digests=key_digests(str(tmp_path / "keys")))
    for path in (
        "/v1/models",
        "/v1/proxy/adapters",
        "/metrics",
        "/openapi.json",
        "/nowhere",
        "/healthz/../v1/models",
    ):
        assert http.get(path).status_code == 401, path
        assert http.get(path, headers={"authorization": "Bearer " + "wrong" * 5}).status_code == 401
        assert http.get(path, headers={"authorization": f"Bearer {KEY}"}).status_code in (200, 404)
    assert http.get("/healthz").status_code == 200
    monkeypatch.setenv("PROXYKD_API_KEYS", f"{KEY},")
    assert key_digests(None) == key_digests(str(tmp_path / "keys"))[:1]
    assert KEY not in str(key_digests(None))


def test_a_bind_beyond_loopback_needs_keys_and_short_keys_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"0\.0\.0\.0 is reachable from outside"):
        require_keys_beyond_loopback("0.0.0.0", ())
    require_keys_beyond_loopback("0.0.0.0", ("digest",))
    for host in ("127.0.0.1", "::1", "localhost"):
        require_keys_beyond_loopback(host, ())
    monkeypatch.setenv("PROXYKD_API_KEYS", "short")
    with pytest.raises(ConfigError, match="fewer than 16") as error:
        key_digests(None)
    assert "short" not in str(error.value).replace("shorter", "")
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(ConfigError, match="holds no API key"):
        key_digests(str(tmp_path / "empty"))


def test_bodies_over_the_limit_are_refused_declared_or_chunked(front):
    client, _, _ = front
    http = client(max_body_bytes=1000)
    large = json.dumps(QUESTION | {"prompt": [1] * 5000}).encode()
    assert http.post("/v1/proxy/distribution", content=large).status_code == 413
    assert http.post("/v1/proxy/distribution", content=iter([large[:600], large[600:]])).status_code == 413
    assert http.post("/v1/proxy/distribution", json=QUESTION).status_code == 200


def test_the_document_has_examples_and_the_statuses_that_are_given(front):
    client, _, _ = front
    document = client().get("/openapi.json").json()
    for path in ("/v1/completions", "/v1/chat/completions", "/v1/proxy/distribution", "/v1/proxy/logits"):
        operation = document["paths"][path]["post"]
        assert {"200", "400", "401", "404", "429", "503", "504"} <= set(operation["responses"])
        assert "422" not in operation["responses"]
        name = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rsplit("/", 1)[-1]
        assert document["components"]["schemas"][name]["examples"]
    assert "application/x-ndjson" in document["paths"]["/v1/proxy/logits"]["post"]["requestBody"]["content"]


CHAT = {"messages": [{"role": "user", "content": "x"}]}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        ("completions", {"prompt": "x", "n": 10**9}, "n"),
        ("completions", {"prompt": "x", "max_tokens": -1}, "max_tokens"),
        ("completions", {"prompt": "x", "max_tokens": 0}, "echo"),
        ("completions", {"prompt": "x", "logprobs": 5000}, "logprobs"),
        ("completions", {"prompt": [-1]}, "prompt"),
        ("completions", {"prompt": []}, "prompt"),
        ("completions", {"prompt": "x", "seed": 2**63}, "seed"),
        ("completions", {"prompt": "x", "kv_transfer_params": {}}, "kv_transfer_params"),
        ("completions", {"prompt": "x", "temperature": 1e9}, "temperature"),
        ("chat/completions", {"messages": []}, "messages"),
        ("chat/completions", CHAT | {"top_logprobs": 3}, "logprobs: true"),
        ("chat/completions", CHAT | {"response_format": {"type": "json_object"}}, "response_format"),
        ("chat/completions", {"messages": [{"role": "root", "content": "x"}]}, "messages"),
        ("proxy/distribution", QUESTION | {"top_k": 10**6}, "top_k"),
        ("proxy/distribution", QUESTION | {"messages": CHAT["messages"]}, "either"),
        ("proxy/distribution", QUESTION | {"prompt": [319_000]}, "vocabulary of 320: give 0 to 319"),
        (
            "proxy/distribution",
            QUESTION | {"token_ids": [[1], [320], []]},
            "token id 320 is outside the vocabulary of 320",
        ),
        ("proxy/distribution", QUESTION | {"token_ids": [[1], [-1], []]}, "token_ids.1.0: Input should be greater"),
        (
            "proxy/distribution",
            QUESTION | {"token_ids": [[1], [2]]},
            "token_ids has 2 lists, and the completion has 3 t",
        ),
        ("proxy/distribution", QUESTION | {"token_ids": [[1] * 129, [], []]}, "token_ids.0: at most 128, got 129"),
        ("proxy/distribution", QUESTION | {"token_ids": [1, 2, 3]}, "token_ids.0: Input should be a valid list"),
        ("proxy/distribution", {"prompt": [1], "token_ids": [[1], [2]]}, "a single one for the next token"),
        ("proxy/distribution", QUESTION | {"prompt": [1] * 30}, "have at most 20 together"),
        ("completions", {"prompt": [1] * 20}, "the prompt has 20 tokens, and prompt and completion have at most 20"),
        ("completions", {"prompt": ["x", "x " * 30]}, "shorten it to 19"),
        ("completions", {"prompt": [1, -2, 3]}, "prompt.1: Input should be greater than or equal to 0"),
        ("completions", {"prompt": ["x"] * 5000}, "prompt: at most 64, got 5000"),
        ("completions", {"prompt": "x", "stop": ["x"] * 17}, "stop: at most 16, got 17"),
        ("completions", {"prompt": "x", "top_k": True}, "top_k: Input should be a valid integer"),
        ("completions", {"prompt": "x", "top_k": "3"}, "top_k: Input should be a valid integer"),
        ("completions", {"prompt": "x", "stream": "yes"}, "stream: Input should be a valid boolean"),
        ("completions", {"prompt": "x", "best_of": 3}, "best_of: not supported by the proxy"),
        ("chat/completions", CHAT | {"tools": [{"type": "function"}]}, "tools: not supported by the proxy"),
        ("chat/completions", CHAT | {"prompt_logprobs": 3}, "prompt_logprobs: not supported by the proxy"),
        ("chat/completions", {"messages": [{"role": "user", "content": [IMAGE]}]}, "takes 'text'"),
        ("chat/completions", {"messages": [{"role": "tool", "content": "x"}]}, "'tool' is not supported by the proxy"),
        ("chat/completions", {"messages": [{"role": "user", "content": "x " * 30}]}, "have at most 20 together"),
        ("proxy/distribution", {"completion": "x"}, "messages or prompt"),
    ],
)
def test_bad_bodies_name_what_is_wrong(front, path, body, named):
    client, engine, _ = front
    answer = client().post(f"/v1/{path}", json=body)
    assert answer.status_code == 400, answer.text
    assert named in answer.json()["error"]["message"]
    assert engine.asked == []


@pytest.mark.parametrize(
    "raw",
    [
        b'{"prompt": "x", "temperature": NaN}',
        b'{"prompt": "\xff"}',
        b'{"prompt": "\\ud800"}',
        b"[" * 100_000,
        b"",
        b'{"prompt": "x", "seed": 1' + b"0" * 5000 + b"}",
    ],
)
def test_broken_json_is_the_clients_fault(front, raw):
    client, _, _ = front
    for path in ("completions", "proxy/distribution"):
        assert (
            client().post(f"/v1/{path}", content=raw, headers={"content-type": "application/json"}).status_code == 400
        )


@pytest.mark.parametrize("name", ["../../etc/passwd", "r99", "base/../r01", "%2e%2e", "r01\x00", "R01"])
def test_unknown_adapters_are_404_with_the_known_ones(front, name):
    client, engine, run = front
    for path, body in (
        ("completions", {"prompt": "x", "model": name}),
        ("proxy/distribution", QUESTION | {"adapter": name}),
    ):
        answer = client().post(f"/v1/{path}", json=body)
        assert answer.status_code == 404
        assert f"{run.id}-base" in answer.json()["error"]["message"]
    assert engine.asked == []


def test_a_slow_engine_is_given_up_after_the_deadline_of_the_config(front, monkeypatch):
    client, engine, run = front
    config = run.config()
    config = config.model_copy(update={"resources": config.resources.model_copy(update={"request_deadline_s": 7.0})})
    assert ServiceSpec.of_run(run, config, HttpOptions(), beside_run=False).deadline_s == 7.0

    async def never(*_, **__):
        await asyncio.sleep(60)

    monkeypatch.setattr(engine, "_answer", never)
    assert client(ready_within_s=0.2).get("/readyz").status_code == 504
    monkeypatch.setattr("services.rest.engine_service.GRACE_S", 0.1)
    assert client(deadline_s=0.1).post("/v1/proxy/distribution", json=QUESTION).status_code == 504
