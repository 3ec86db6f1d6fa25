"""Slices by what is asked: columns, language, length, topics; and gold answers."""

from __future__ import annotations

import random

import pytest

from proxykd.certification.languages import language_of
from proxykd.certification.prompts import Prompt
from proxykd.certification.slices import FEWEST, slices_of

TEXTS = [
    ("What is the capital of France, and how do you know it?", "English"),
    ("Was ist die Hauptstadt von Frankreich, und wie heißt sie auf Deutsch?", "German"),
    ("Quelle est la capitale de la France et pour qui ?", "French"),
    ("¿Cuál es la capital de Francia y cómo se llega por tren?", "Spanish"),
    ("Qual è la capitale della Francia e come si chiama?", "Italian"),
    ("Hoe heet de hoofdstad van Frankrijk en wat kan ik er doen?", "Dutch"),
    ("Jak nazywa się stolica Francji i co jest do zobaczenia?", "Polish"),
    ("法国的首都是哪里", "Chinese"),
    ("フランスの首都はどこですか", "Japanese"),
    ("프랑스의 수도는 어디입니까?", "Korean"),
    ("Какая столица Франции?", "Cyrillic script"),
    ("ما هي عاصمة فرنسا؟", "Arabic script"),
    ("xyzzy plugh", "Latin script"),
    ("12 + 30 = ?", "no letters"),
]
TOPICS = {
    "cooking": ["simmer", "onions", "garlic", "butter", "skillet", "recipe", "oven", "dough"],
    "sailing": ["halyard", "mainsail", "harbour", "anchor", "rudder", "winch", "tide", "mooring"],
    "algebra": ["matrix", "polynomial", "eigenvalue", "integer", "quotient", "theorem", "lemma", "proof"],
}


def prompts_of(texts, **columns):
    return [
        Prompt(str(i), str(i), ({"role": "user", "content": text},), "y", None, {k: v[i] for k, v in columns.items()})
        for i, text in enumerate(texts)
    ]


def named(slices):
    return {(one.kind, one.name): one.places for one in slices}


@pytest.mark.parametrize(("text", "language"), TEXTS)
def test_languages(text, language):
    assert language_of(text) == language


def test_the_whole_comes_first_and_columns_give_a_slice_a_value():
    kinds = ["a"] * 30 + ["b"] * 25 + ["rare"] * 5
    found = slices_of(prompts_of(["x"] * 60, team=kinds), ["team"])
    assert found[0].kind == "overall"
    assert named(found) == {
        ("overall", "overall"): tuple(range(60)),
        ("team", "a"): tuple(range(30)),
        ("team", "b"): tuple(range(30, 55)),
    }


def test_rare_values_stand_together_where_they_are_enough():
    kinds = ["a"] * 30 + [f"rare {i % 7}" for i in range(28)]
    found = named(slices_of(prompts_of(["x"] * 58, team=kinds), ["team"]))
    assert found["team", "other"] == tuple(range(30, 58))


def test_a_kind_that_says_no_more_than_the_whole_is_left_out():
    assert len(slices_of(prompts_of(["x"] * 40, team=["a"] * 40), ["team"])) == 1
    assert len(slices_of(prompts_of(["x"] * (FEWEST - 1), team=["a"] * (FEWEST - 1)), ["team"])) == 1


def test_the_same_prompts_are_one_slice():
    texts = ["short"] * 30 + ["a good deal longer than that"] * 30
    found = named(slices_of(prompts_of(texts, team=["a"] * 30 + ["b"] * 30), ["team"]))
    assert {kind for kind, _ in found} == {"overall", "team"}  # lengths say the same


def test_lengths_are_thirds_in_order():
    found = [one for one in slices_of(prompts_of(["y" * (1 + i) for i in range(90)]), []) if one.kind == "length"]
    assert [one.name for one in found] == ["up to 30 characters", "up to 60 characters", "over 60 characters"]
    assert [len(one.places) for one in found] == [30, 30, 30]


def test_topics_are_found_named_and_always_the_same():
    chance = random.Random(0)
    kinds = [name for name in TOPICS for _ in range(100)]
    texts = [" ".join(chance.choices(TOPICS[name], k=6)) for name in kinds]
    found = [one for one in slices_of(prompts_of(texts), []) if one.kind == "topic"]
    assert sorted(len(one.places) for one in found) == [100, 100, 100]
    for one in found:
        [name] = {kinds[place] for place in one.places}
        assert set(one.name.split(", ")) <= set(TOPICS[name])
        assert set(one.examples) <= set(one.places)
    assert [one for one in slices_of(prompts_of(texts), []) if one.kind == "topic"] == found


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        ("187", "6 + 1 gives 7 ; then the answer is 187 .", True),
        ("187", "the answer is 186", False),
        ("1,200", "It is 1200 in all.", True),
        ("yes", "Yes, it is.", True),
        ("/^ok\\b/", "ok then", True),
        ("/^ok\\b/", "not ok", False),
        ("Paris", "The answer is Paris.", True),
    ],
)
def test_gold_answers(gold, answer, right):
    assert Prompt("1", "k", ({"role": "user", "content": "?"},), "y", gold).right(answer) is right
