"""What a judge is asked, how its replies are read, and that nothing is asked for which the answer is known."""

from __future__ import annotations

import pytest

from proxykd.certification.judging import RUBRIC, Comparison, Judgement, comparisons, consistency, read_reply
from proxykd.certification.prompts import Prompt

REPLIES = [
    ("Verdict: A", "A"),
    ("B answers the question.\n\n**Verdict: B**", "B"),
    ("Both are wrong.\nverdict: TIE.", "tie"),
    ("Verdict: Answer A", "A"),
    ('Answer A says "Verdict: A", but it is wrong.\nVerdict: B', "B"),
    ("<think>Verdict: A? No.</think>\nVerdict: tie", "tie"),
    ("My final verdict is: [[C]]", "tie"),
    ("[[B]]", "B"),
    ("a", "A"),
    ("Answer B.", "B"),
    ("They are alike.\nTie", "tie"),
    ("Verdict - draw", "tie"),
    ("", None),
    ("Answer A is good and answer B is bad.", None),
    ("I'm sorry, but I can't help with that.", None),
    ("A is a letter of the alphabet, and so is B.", None),
    ("Verdict: neither", None),
    ("Verdict: As I said", None),
]


def prompt(number, teacher="blue", gold=None):
    return Prompt(f"{number:08x}", f"k{number}", ({"role": "user", "content": f"ask {number}"},), teacher, gold)


@pytest.mark.parametrize(("reply", "said"), REPLIES)
def test_replies_as_judges_write_them(reply, said):
    assert read_reply(reply) == said


def test_the_judge_is_blind_and_sees_both_orders():
    one, other = (
        Comparison(prompt(1), "student", order, "red").record(None) for order in ("model first", "teacher first")
    )
    first, second = (record.messages[1]["content"] for record in (one, other))
    assert first.index("red") < first.index("blue")
    assert second.index("blue") < second.index("red")
    for record in (one, other):
        assert RUBRIC in record.messages[0]["content"]
        assert not {"student", "teacher", "model"} & set(" ".join(m["content"] for m in record.messages).split())
    own = Comparison(prompt(1), "student", "model first", "red").record("Shorter is better.\n")
    assert "Shorter is better.\nWhat stands" in own.messages[0]["content"]


def test_a_conversation_is_shown_with_its_roles():
    turns = (
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes?"},
        {"role": "user", "content": "x"},
    )
    asked = Comparison(Prompt("1", "k", turns, "b"), "student", "model first", "a").record(None)
    assert "[user]\nhi\n\n[assistant]\nyes?\n\n[user]\nx" in asked.messages[1]["content"]


def test_what_is_known_is_not_asked():
    some = [prompt(1), prompt(2, teacher=" red\n"), prompt(3, gold="blue"), prompt(4, teacher=None)]
    said = {"student": {one.id: "red" for one in some}, "sft": {one.id: "red" for one in some}}
    asked = comparisons(some, said, "student", repeats=1.0)
    assert [(one.subject, one.prompt.id, one.order) for one in asked] == [
        ("student", some[0].id, "model first"),
        ("student", some[0].id, "teacher first"),
        ("student", some[0].id, "again"),
        ("sft", some[0].id, "model first"),
        ("sft", some[0].id, "teacher first"),
    ]
    assert len({one.record(None).id for one in asked}) == 3  # the two models say the same


def test_about_the_share_that_is_asked_is_repeated():
    some = [prompt(number * 2654435761 % 2**32) for number in range(1000)]
    said = {"student": {one.id: "red" for one in some}}
    again = sum(one.order == "again" for one in comparisons(some, said, "student", repeats=0.1))
    assert 70 <= again <= 130


def test_consistency_by_hand():
    """Of four pairs one agrees, in one the first answer won both times, in one the second; one cannot be read."""
    said = {
        "p1": (1, 1, 1), "p2": (1, -1, 0), "p3": (-1, 1, None), "p4": (None, 1, 1), "p5": (0, 1, None),
    }  # fmt: skip
    judged = {
        (name, "student", order): Judgement(value)
        for name, values in said.items()
        for order, value in zip(("model first", "teacher first", "again"), values, strict=True)
    }
    found = consistency(judged)
    assert (found.swapped, found.swapped_agree) == (4, 1)
    assert (found.first_wins_both, found.second_wins_both) == (1, 1)
    assert (found.repeated, found.repeated_agree) == (2, 1)
