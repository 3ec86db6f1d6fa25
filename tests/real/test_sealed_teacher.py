"""The sealed teacher over real HTTP with the official client: text, and nothing that gives a probability away."""

from __future__ import annotations

import openai
import pytest

from actors.apps import teacher_app
from actors.collection import collect, collected_lines
from proxykd.config import TeacherConfig
from proxykd.corpus import read_prompts
from proxykd.errors import TeacherError
from tests import tiny_model
from tests.small_run import engine_spec

QUESTION = [{"role": "user", "content": "the red dog?"}]


@pytest.fixture(scope="module")
def base_url(deployer, run_with_adapters):
    url = deployer.deploy_teacher(engine_spec(run_with_adapters, "merged"), "tiny-sealed")
    yield url
    deployer.stop(teacher_app(run_with_adapters.id))


@pytest.fixture
def client(base_url):
    with openai.OpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=60) as client:
        yield client


def ask(client, **extra):
    return client.chat.completions.create(model="tiny-sealed", messages=QUESTION, max_tokens=6, **extra)


def test_it_answers_with_text_usage_and_finish_reason(client):
    answer = ask(client, temperature=1.0, seed=5)
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.choices[0].logprobs is None
    assert answer.usage.completion_tokens <= 6
    assert ask(client, seed=5).choices[0].message.content == answer.choices[0].message.content
    assert [m.id for m in client.models.list()] == ["tiny-sealed"]


@pytest.mark.parametrize(
    "extra",
    [
        {"logprobs": True},
        {"logprobs": True, "top_logprobs": 5},
        {"logit_bias": {"5": 100}},
        {"extra_body": {"prompt_logprobs": 1}},
        {"extra_body": {"return_token_ids": True}},
    ],
)
def test_whatever_would_open_the_seal_is_refused(client, extra):
    with pytest.raises(openai.BadRequestError, match="returns text only"):
        ask(client, **extra)


def test_bad_requests_name_the_field(client):
    with pytest.raises(openai.NotFoundError, match="ask for 'tiny-sealed'"):
        client.chat.completions.create(model="gpt-4", messages=QUESTION)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        ask(client, temperature=9.0)
    with pytest.raises(openai.BadRequestError, match="the limit is 96"):
        client.chat.completions.create(model="tiny-sealed", messages=[{"role": "user", "content": "cat " * 200}])


def test_collection_keeps_what_arrived_and_asks_only_for_what_is_missing(base_url, tmp_path):
    import json

    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in tiny_model.prompts(40)))
    prompts = read_prompts(path)
    teacher = TeacherConfig(model="tiny-sealed", base_url=base_url, max_tokens=8, concurrency=16)
    seen = []
    collect(prompts[:25], teacher, base_url, tmp_path / "out", 1, lambda *args: seen.append(args[:2]))
    before = collected_lines(tmp_path / "out")
    collect(prompts, teacher, base_url, tmp_path / "out", 1, lambda *args: seen.append(args[:2]))
    lines = collected_lines(tmp_path / "out")
    assert lines[:25] == before
    assert sorted(line["id"] for line in lines) == sorted(prompt.id for prompt in prompts)
    assert seen[-1] == (40, 40)


def test_a_teacher_that_is_not_there_is_said_plainly(tmp_path):
    teacher = TeacherConfig(model="x", base_url="http://127.0.0.1:9/v1", max_retries=1, timeout_s=2)
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "Q"}\n')
    with pytest.raises(TeacherError, match=r"127\.0\.0\.1:9/v1 cannot be reached after 1 retries"):
        collect(read_prompts(path), teacher, str(teacher.base_url), tmp_path / "out", 1, lambda *args: None)
