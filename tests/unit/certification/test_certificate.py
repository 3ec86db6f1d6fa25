"""A certificate from made-up evidence: what is compared, by what, and what is told of it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from proxykd.certification.answers import Answer, Kept, write_lines
from proxykd.certification.certificate import Evidence, _correlation, certify
from proxykd.certification.certificate_model import Facts, Tally
from proxykd.certification.certificate_page import certificate_page
from proxykd.certification.judging import Judgement, comparisons
from proxykd.certification.prompts import Prompt
from proxykd.certification.spending import Spent
from proxykd.certification.wording import left_open_by_judge, sentence
from proxykd.errors import BenchmarkError

FACTS = Facts(
    run="r", run_sha256="c" * 64, teacher="t", student="s", student_sha256="5" * 64, models=["sft"], source="f",
    prompts_sha256="9" * 64, settings={"engine": "vllm"}, answered_first="a", answered_last="b",
)  # fmt: skip
SPENT = Spent(
    models=["j"], provider="openai", replies=4, prompt_tokens=9, completion_tokens=9, cost=0.5,
    unanswered_cost_at_most=0.0, currency="USD", first="a", last="b",
)  # fmt: skip
TEACHER = "the teacher says this"
SAID = ["short", "about as long as that", "a good deal longer than what the teacher says", TEACHER, "7", "8", "x"]
"""Of the student: four prompts for a judge (of which one is answered alike), two with a gold 7, one without a teacher."""


def made_up(judged):
    """`judged` are the student's values in both orders, of the first three prompts; the SFT student ties in all."""
    gold, teacher = [None] * 4 + ["7", "7", None], [TEACHER] * 4 + ["7", "The answer is 7.", None]
    prompts = [
        Prompt(f"{i:016x}", str(i), ({"role": "user", "content": f"<b>ask</b> {i}"},), teacher[i], gold[i])
        for i in range(len(SAID))
    ]
    answers = {name: {p.id: Answer(p.id, text, 0.0) for p, text in zip(prompts, SAID, strict=True)} for name in ("student", "sft")}  # fmt: skip
    texts = {name: {key: one.text for key, one in said.items()} for name, said in answers.items()}
    asked = comparisons(prompts, texts, "student", repeats=0.0)
    found = {}
    for one in asked:
        value = judged[int(one.prompt.id, 16)][one.order == "teacher first"] if one.subject == "student" else 0
        found[one.prompt.id, one.subject, one.order] = Judgement(value, "" if value is not None else "refusal", "why")
    return certify(Evidence(prompts, answers, asked, found, SPENT), FACTS, 0.05, [])


def test_every_prompt_is_compared_by_what_it_has():
    found = made_up([(-1, -1), (1, 0), (1, 1)])
    assert found.prompts == {
        "given": 7, "compared": 6, "exact": 2, "identical": 1, "judged": 3, "without_teacher": 1,
    }  # fmt: skip
    mine = found.overall.student
    assert (mine.wins, mine.ties, mine.losses, mine.unread) == (2, 2, 2, 0)
    assert mine.net == pytest.approx((-1 + 0.5 + 1 + 0 + 0 - 1) / 6)
    assert found.overall.beside["sft"].net == pytest.approx(-1 / 6)
    assert found.overall.right == {"student": 0.5, "sft": 0.5, "teacher": 1.0}
    assert [(one.student, one.net) for one in found.worst] == [("short", -1.0), ("8", -1.0)]
    assert [one.judge for one in found.worst] == [["why", "why"], []]


def test_without_the_teacher_there_is_none():
    alone = [Prompt("1", "1", ({"role": "user", "content": "x"},), None)]
    with pytest.raises(BenchmarkError, match="none of 1 prompts has an answer of the teacher"):
        certify(Evidence(alone, {"student": {}}), FACTS, 0.05, [])


def test_length_bias_by_hand():
    found = made_up([(-1, -1), (1, 0), (1, 1)]).length
    ratios = [math.log((1 + len(text)) / (1 + len(TEACHER))) for text in SAID[:3]]
    assert (found.longer_won.agree, found.longer_won.count) == (2, 2)  # the second is as long as the teacher's
    assert found.student_longer == pytest.approx(1 / 3)
    assert found.correlation is None  # three are too few for an interval
    pairs = [(ratio, value) for ratio, value in zip(ratios * 2, (-1, 0.5, 1, -1, 1, 0.5), strict=True)]
    r, low, high = _correlation(np.array(pairs))
    assert r == pytest.approx(np.corrcoef(np.array(pairs).T)[0, 1])
    assert math.atanh(high) - math.atanh(r) == pytest.approx(1.959964 / math.sqrt(3))
    assert math.atanh(r) - math.atanh(low) == pytest.approx(1.959964 / math.sqrt(3))


def test_a_prompt_whose_judge_is_silent_is_open_both_ways():
    found = made_up([(None, 1), (None, None), (1, 1)])
    mine = found.overall.student
    assert (mine.wins, mine.unread, mine.prompts) == (1, 2, 6)
    assert found.judge.unread == {"refusal": 3}
    assert found.judge.swapped.count == 1 + 3  # the SFT student's pairs are read


def test_what_a_silent_judge_leaves_open_is_said_to_be_its_doing():
    found = made_up([(None, 1), (None, None), (None, None)])
    told = sentence(found)
    assert "; 3 of them lack a verdict, and as long as so many do, no number of prompts would tell" in told
    assert found.overall.more is None
    assert left_open_by_judge(tally(net=0.0, unread=46), 0.05)
    assert not left_open_by_judge(tally(net=0.0, unread=2), 0.05)  # 2 of 48 move it by 0.042
    assert left_open_by_judge(tally(net=0.0, unread=3), 0.05)
    assert left_open_by_judge(tally(net=None, unread=48), 0.05)


def tally(net, unread):
    return Tally(prompts=48, wins=0, ties=48 - unread, losses=0, unread=unread, net=net, low=None, high=None)


def test_the_page_holds_no_markup_of_anybodys_text():
    page = certificate_page(made_up([(-1, -1), (1, 0), (1, 1)]))
    assert "&lt;b&gt;ask&lt;/b&gt; 0" in page
    assert "<b>ask" not in page
    assert sentence(made_up([(-1, -1), (1, 0), (1, 1)])).startswith("NOT ENOUGH DATA: over 6 prompts its net is −0.083")


def test_kept_answers_are_of_one_way_of_asking(tmp_path):
    kept = Kept(tmp_path, Answer)
    kept.claim({"engine": "vllm", "max_length": 64})
    kept.claim({"engine": "vllm", "max_length": 64})
    with pytest.raises(BenchmarkError, match=r"given with \{'max_length': 64\}; ask so again, or name another folder"):
        kept.claim({"engine": "vllm", "max_length": 128})


def test_prompts_that_are_added_are_missing_alone(tmp_path):
    kept = Kept(tmp_path, Answer)
    some = [Prompt(str(i), str(i), ({"role": "user", "content": "x"},), "y") for i in range(150)]
    chunks = list(kept.missing("student", some[:100]))
    assert [(path.name, len(part)) for path, part in chunks] == [("000000.jsonl", 64), ("000001.jsonl", 36)]
    path, part = chunks[0]
    write_lines(path, [Answer(one.id, "\u2028 said\n", 1.0) for one in part])  # a death before the second
    assert kept.read("student")["3"].text == "\u2028 said\n"
    chunks = list(kept.missing("student", some))
    assert [(path.name, len(part)) for path, part in chunks] == [("000001.jsonl", 64), ("000002.jsonl", 22)]
    assert chunks[0][1][0].id == "64"
