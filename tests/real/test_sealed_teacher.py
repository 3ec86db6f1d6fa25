"""The sealed teacher over real HTTP with the official client: text, and nothing that gives a probability away."""

from __future__ import annotations

import json

import openai
import pytest

from actors.engine.app_names import teacher_app
from proxykd.collection.job import Collection
from proxykd.config import CollectConfig, CorpusConfig
from proxykd.text.corpus import read_prompts
from tests import tiny_model
from tests.plain_corpus import read_corpus
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


def test_collection_asks_it_as_any_provider(base_url, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in tiny_model.prompts(40)))
    teacher = {"model": "tiny-sealed", "base_url": base_url, "max_tokens": 8}
    config = CollectConfig.model_validate({"teacher": teacher, "quality": {"drop": []}})
    for limit in (25, 40):  # the second goes on where the first ended
        collection = Collection(tmp_path / "out", config, read_prompts(path)[:limit])
        assert len(collection.missing()) == limit - (0 if limit == 25 else 25)
        outcome = collection.run(base_url, lambda progress: None)
        collection.require_whole(outcome)
        summary = collection.conclude(outcome)
    assert summary["records"] == 40
    assert summary["models"] == {"tiny-sealed": 40}
    records = read_corpus(CorpusConfig(path=str(tmp_path / "out"), max_bad_share=1.0)).records
    assert len({record.id for record in records}) == len(records)
