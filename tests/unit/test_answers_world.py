"""configs/miniature/answers.py: right is what arithmetic says, a text is as its slips make it, nothing held out is read."""

from __future__ import annotations

import json
import random
import re
from itertools import product
from pathlib import Path

import pytest
import yaml

from proxykd.evaluation.benchmarks import parse_tasks, read_questions
from proxykd.study.studies import load_study
from proxykd.text.chat import ChatFormat


@pytest.fixture(scope="module")
def world():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend("configs/miniature")
        import answers
    return answers


def drawn(world, count=300):
    chance = random.Random(7)
    return [world.draw(chance) for _ in range(count)]


def numbers(prompt):
    return sorted(map(int, re.findall(r"\d+", prompt)))


def columns(text):
    """Every column of a worked text: the numbers that go in, and what is said to come out."""
    worked = text.rpartition(";")[0].partition(":")[2].split(";")
    sides = [re.fullmatch(r"(.*) (?:is|makes|gives|=) (\d+)(?: \w+ 1)? ", f"{column.strip()} ") for column in worked]
    return [([int(number) for number in re.findall(r"\d+", side[1])], int(side[2])) for side in sides]


def test_the_answer_is_the_sum_of_the_numbers_that_the_question_names(world):
    questions = [one.asked() for one in drawn(world)]
    assert [int(question.answer) for question in questions] == [sum(numbers(q.question)) for q in questions]
    assert {question.kind for question in questions} == {"number"}


def test_without_slips_every_voice_is_right_and_is_read_so(world):
    chance = random.Random(3)
    for voice in (world.TEACHER, *world.WEB):
        sure = world.Voice(voice.name, 0.0, voice.works)
        for one in drawn(world):
            question, text = one.asked(), sure.says(one, chance)
            assert question.right(question.extract(text)), (question.question, text)


def test_a_worked_text_says_true_columns_but_where_it_slips(world):
    chance, slips, of = random.Random(5), 0, 0
    voice = world.Voice(world.TEACHER.name, 0.2)
    for one in drawn(world, 1000):
        for parts, out in columns(voice.says(one, chance)):
            assert abs(out - sum(parts)) <= 1, (parts, out)
            slips, of = slips + (out != sum(parts)), of + 1
    assert slips / of == pytest.approx(0.2, abs=0.03)  # three standard errors: 0.027


def test_a_text_is_right_as_often_as_none_of_its_columns_slips(world):
    chance = random.Random(9)
    for voice in (world.TEACHER, *world.WEB):
        asked = [one.asked() for one in drawn(world, 1500)]
        texts = [voice.says(one, chance) for one in drawn(world, 1500)]
        right = sum(q.right(q.extract(text)) for q, text in zip(asked, texts, strict=True)) / len(asked)
        expected = sum((1 - voice.slips) ** len(one.columns) for one in drawn(world, 1500)) / len(asked)
        assert right == pytest.approx(expected, abs=0.035)


def test_what_is_held_out_is_in_no_prompt_and_in_no_models_text_however_it_is_asked(world, tmp_path):
    world.write_questions(tmp_path / "questions" / "sums.jsonl")
    assert parse_tasks("sums", tmp_path / "questions") == ["sums"]
    held_out = read_questions("sums", tmp_path / "questions")
    assert len({question.question for question in held_out}) == len(held_out) == world.HELD_OUT
    kept = [numbers(question.question) for question in held_out]
    for seed in (1, 2):
        world.write_prompts(tmp_path / "prompts.jsonl", random.Random(seed))
        rows = [json.loads(line)["prompt"] for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
        assert len(set(rows)) == world.PROMPTS
        read = [prompt for prompt, _ in world.MODELS["student"].batch(random.Random(seed), 2000)]
        assert not [prompt for prompt in (*rows, *read) if numbers(prompt) in kept]


@pytest.fixture(scope="module")
def heard(world):
    return [pair for name in ("teacher", "student") for pair in world.MODELS[name].batch(random.Random(1), 1000)]


@pytest.fixture(scope="module")
def tokenizer(world, heard):
    return world.make_tokenizer([f"{prompt} {text}" for prompt, text in heard], world.PIECES)


def test_the_tokenizer_takes_digits_one_by_one_and_the_instruction_as_one(heard, tokenizer):
    for prompt, text in heard[::40]:
        question, instruction = prompt.split("\n\n")
        pieces = [tokenizer.decode([token]) for token in tokenizer(prompt).input_ids]
        assert pieces[-1] == f"\n\n{instruction}"
        assert "".join(pieces) == prompt
        assert sum(len(re.findall(r"\d", piece)) == 1 for piece in pieces) == len(re.findall(r"\d", question))
        assert tokenizer.decode(ChatFormat(tokenizer).completion_ids(text)).startswith(text)


def test_the_study_has_room_for_its_text_and_its_grids_give_every_arm_as_many_settings(heard, tokenizer):
    study, chat = load_study("configs/study-answers.yaml"), ChatFormat(tokenizer)
    asked = max(len(chat.prompt_ids(({"role": "user", "content": prompt},))) for prompt, _ in heard)
    answered = max(len(chat.completion_ids(text)) for _, text in heard)
    for arm in study.expand():
        config = arm.config
        assert config.corpus.prompts == f"runs/answers/prompts-{config.seed}.jsonl"
        sampled = [config.alignment] + ([config.on_policy] if config.on_policy else [])
        room = [config.teacher.max_tokens, *(phase.max_new_tokens for phase in sampled)]
        assert answered <= min(room), (arm.name, room)
        assert asked + max(room) <= config.corpus.max_length, (arm.name, asked, room)
    grids = yaml.safe_load(Path("configs/tuning/answers-arms.yaml").read_text())["grids"]
    assert set(study.arms) - set(grids) == {"sft_faster"}, "it takes the rate that another arm's grid chose"
    assert {len(list(product(*grid.values()))) for grid in grids.values()} == {6}
