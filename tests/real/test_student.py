"""The student behind real Serve and vLLM, by the official client: its doubt is the certificate's, and its teacher answers."""

from __future__ import annotations

import shutil

import openai
import pytest

from actors.cluster.http_options import HttpOptions
from actors.engine.app_names import student_app, student_proxy_app, student_rest_app
from actors.engine.proxy_engine import EngineSpec
from proxykd.certification.answer_scores import AnswerScorer
from proxykd.certification.doubt import Doubt
from proxykd.certification.doubt_files import student_digest
from proxykd.evaluation.harness import Answerer
from proxykd.models.loading import initialise
from proxykd.models.run_models import local_model
from proxykd.runs.adapter_names import BASE
from proxykd.runs.run_directory import RunDirectory
from services.rest.engine_service import ServiceSpec
from services.rest.fall_back import FallBack
from tests.collecting import config_for
from tests.small_run import run_config
from tests.teacher_stub import KEY, teacher_stub

TEXTS = ("the red dog?", "what is a blue bird", "a cat and a dog")
ROOM = 24


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory) -> RunDirectory:
    run = RunDirectory.create(run_config(str(tiny), str(tmp_path_factory.mktemp("runs")), name="student"))
    initialise(run.config().student, run.models / "student")
    initialise(run.config().proxy, run.models / "proxy")
    shutil.copytree(run.models / "student", run.student)
    return run


@pytest.fixture(scope="module")
def serve(run, deployer):
    """A function of a fall-back that serves the student with it and returns the client."""
    config, clients = run.config(), []
    spec = EngineSpec.of_student(run, config)
    deployer.deploy_student(spec)

    def serve(fall_back: FallBack | None) -> openai.OpenAI:
        name = spec.adapter_name(None)
        front = ServiceSpec.of_run(run, config, HttpOptions(), beside_run=False, default_adapter=name)
        url = deployer.deploy_student_rest(front, fall_back)
        clients.append(openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120))
        return clients[-1]

    yield serve
    for client in clients:
        client.close()
    for app in (student_rest_app(run.id), student_app(run.id), student_proxy_app(run.id)):
        deployer.stop(app)


def ask(client, text, **more):
    messages = [{"role": "user", "content": text}]
    return client.chat.completions.create(model="student", messages=messages, max_tokens=ROOM, **more)


def fall_back(run, stub, threshold, proxy=None) -> FallBack:
    times = 1 if proxy is None else 2
    doubt = Doubt(
        student_sha256=student_digest(run), proxy=proxy, means=[-2.0, -5.0, -20.0] * times,
        scales=[1.0, 2.0, 9.0] * times, weights=[-0.5, -0.2, -0.1, 0.3, 0.4, -0.2][: 3 * times],
        intercept=0.1, thresholds=[], prompts=100, certified=[],
    )  # fmt: skip
    config = config_for(stub, {"max_tokens": 8}, budget={"tokens": 100_000})
    return FallBack(config, doubt, threshold, None)


def test_the_doubt_that_is_served_is_the_one_that_was_certified(run, serve):
    """By the trainer's own forward pass of what was answered, stop token and all."""
    scorer = AnswerScorer(Answerer(str(local_model(run.student)), "transformers", "float32"))
    with teacher_stub(key=KEY) as stub:
        wanted = fall_back(run, stub, threshold=1.0)
        client = serve(wanted)
        for text in TEXTS:
            answer = ask(client, text)
            told = answer.model_extra["proxykd"]
            said = answer.choices[0].message.content
            [logps] = scorer.score([({"role": "user", "content": text},)], [said.strip()])
            assert told["answered_by"] == "student"
            assert told["doubt"] == pytest.approx(wanted.doubt.of(logps), abs=2e-3)
            assert answer.model == f"{run.id}-student"
            assert ask(client, text).choices[0].message.content == said  # greedy
        assert stub.stats()["answered"] == 0


def test_its_proxy_has_a_word_from_an_engine_of_its_own(run, serve, deployer):
    """By the forward passes of both models, and it goes on without a proxy that is gone."""
    deployer.deploy_student_proxy(EngineSpec.of_student_proxy(run, run.config()))
    scorers = [
        AnswerScorer(Answerer(str(local_model(folder)), "transformers", "float32"))
        for folder in (run.student, run.models / "proxy")
    ]
    with teacher_stub(key=KEY) as stub:
        wanted = fall_back(run, stub, threshold=1.0, proxy=BASE)
        client = serve(wanted)
        answer = ask(client, TEXTS[0])
        said = answer.choices[0].message.content
        messages = ({"role": "user", "content": TEXTS[0]},)
        logps = [scorer.score([messages], [said.strip()])[0] for scorer in scorers]
        assert logps[0] != logps[1]
        assert answer.model_extra["proxykd"]["doubt"] == pytest.approx(wanted.doubt.of(*logps), abs=2e-3)
        deployer.stop(student_proxy_app(run.id))
        answer = ask(client, TEXTS[0])
        assert answer.choices[0].message.content == said
        told = answer.model_extra["proxykd"]
        assert (told["answered_by"], told["why"], told["doubt"]) == ("student", "proxy", None)


def test_what_it_doubts_is_the_teachers_whole_or_streamed(run, serve):
    with teacher_stub() as stub:
        client = serve(fall_back(run, stub, threshold=0.0))
        whole = ask(client, TEXTS[0])
        assert whole.model_extra["proxykd"]["answered_by"] == "teacher"
        assert whole.model == "stub-1"
        parts = list(ask(client, TEXTS[0], stream=True))
        assert "".join(part.choices[0].delta.content or "" for part in parts) == whole.choices[0].message.content
        assert parts[0].model_extra["proxykd"]["why"] == "doubtful"
        assert stub.stats()["answered"] == 2


def test_alone_it_streams_as_it_goes(serve):
    client = serve(None)
    whole = ask(client, TEXTS[0])
    assert "proxykd" not in whole.model_extra
    parts = list(ask(client, TEXTS[0], stream=True))
    assert "".join(part.choices[0].delta.content or "" for part in parts) == whole.choices[0].message.content
    assert client.models.list().data[0].id.endswith("-student")
    assert client.completions.create(model="student", prompt="the red", max_tokens=4).choices[0].text
