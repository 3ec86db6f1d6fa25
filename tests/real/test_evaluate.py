"""`proxykd evaluate` over real vLLM and over transformers: the same greedy answers, every one kept, none asked twice."""

from __future__ import annotations

import json
import shutil

import pytest

from proxykd.runs.storage import read_json, write_json
from tests.real.test_run import proxykd

QUESTIONS = 300


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    choices = [
        {"id": f"mmlu/test/{'anatomy' if i % 2 else 'virology'}/{i}", "question": f"the red dog {i}?"}
        | {"choices": ["a dog", "a cat"], "answer": "AB"[i % 2]}
        for i in range(QUESTIONS)
    ]
    (folder / "mmlu.jsonl").write_text("".join(json.dumps(row) + "\n" for row in choices))
    numbers = {"id": "gsm8k/test/0", "question": "two and two?", "choices": None, "answer": "4"}
    (folder / "gsm8k.jsonl").write_text("".join(json.dumps(numbers | {"id": f"gsm8k/test/{i}"}) + "\n" for i in (0, 1)))
    return folder


def evaluate(model, data, output, *options):
    tasks = ("--tasks", "mmlu,gsm8k", "--data-dir", str(data), "--output", str(output), "--dtype", "float32")
    return proxykd("evaluate", str(model), *tasks, "--max-length", "256", *options)


def kept(folder, name, task):
    lines = [line for path in sorted((folder / name / task).glob("*.jsonl")) for line in path.read_text().splitlines()]
    return [json.loads(line) for line in lines]


def legible(generation):
    """Without what the two decode differently: special tokens, and bytes that are no characters."""
    return generation.replace("<|im_start|>", "").replace("<|endoftext|>", "").replace("\ufffd", "")


@pytest.fixture(scope="module")
def by_vllm(tiny, data, tmp_path_factory):
    output = tmp_path_factory.mktemp("out")
    told = evaluate(tiny, data, output)
    assert told.returncode == 0, told.stderr
    return output, told.stdout


def test_every_generation_is_kept_and_adds_up_to_the_score(by_vllm):
    output, told = by_vllm
    results = read_json(output / "results.json")["results"]["tiny"]
    answers = kept(output, "tiny", "mmlu")
    assert [answer["id"].split("/")[-1] for answer in answers] == [str(i) for i in range(QUESTIONS)]
    assert results["mmlu"]["score"] == sum(answer["right"] for answer in answers) / QUESTIONS
    assert results["mmlu"]["subtasks"].keys() == {"anatomy", "virology"}
    assert results["gsm8k"]["n"] == 2
    assert all(answer["prompt"].startswith("<|im_start|>") and "A. a dog" in answer["prompt"] for answer in answers)
    assert "mmlu" in told
    assert f"{results['mmlu']['score']:.3f}" in told


@pytest.fixture(scope="module")
def by_transformers(tiny, data, tmp_path_factory):
    """Whatever the model's folder recommends: greedy is the likeliest token."""
    model = shutil.copytree(tiny, tmp_path_factory.mktemp("model") / "tiny")
    recommended = {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "suppress_tokens": list(range(30, 120))}
    write_json(model / "generation_config.json", recommended | {"eos_token_id": 2})
    output = tmp_path_factory.mktemp("out")

    def again(*options):
        return evaluate(model, data, output, "--engine", "transformers", *options)

    told = again()
    assert told.returncode == 0, told.stderr
    return output, again


def test_transformers_gives_the_same_greedy_answers(by_vllm, by_transformers):
    theirs, ours = (
        [legible(answer["generation"]) for answer in kept(by[0], "tiny", "mmlu")[:20]]
        for by in (by_vllm, by_transformers)
    )
    assert ours == theirs


def test_what_was_answered_is_not_asked_again_and_other_settings_are_refused(by_transformers):
    output, ask_again = by_transformers
    first, second = sorted((output / "tiny" / "mmlu").glob("*.jsonl"))
    stamp, before = first.stat().st_mtime_ns, second.read_bytes()
    second.unlink()
    again = ask_again()
    assert again.returncode == 0, again.stderr
    assert f"mmlu  {QUESTIONS - 256} of {QUESTIONS - 256} questions" in again.stdout
    assert "gsm8k  2 of 2" not in again.stdout
    assert first.stat().st_mtime_ns == stamp
    assert second.read_bytes() == before
    refused = ask_again("--limit", "7")
    assert refused.returncode == 2
    assert "holds an evaluation with {'limit': None}; name another folder with --output" in refused.stderr


def test_a_model_without_a_chat_template_is_refused_before_anything_starts(tiny, data, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in tiny.iterdir():
        if path.name == "tokenizer_config.json":
            settings = json.loads(path.read_text())
            settings.pop("chat_template", None)
            (bare / path.name).write_text(json.dumps(settings))
        elif path.is_file() and not path.name.startswith("chat_template"):
            (bare / path.name).write_bytes(path.read_bytes())
    refused = evaluate(bare, data, tmp_path / "out")
    assert refused.returncode == 2
    assert "has no chat template" in refused.stderr
    assert not (tmp_path / "out").exists()
