"""What report.json says of models whose truth is known."""

from __future__ import annotations

from proxykd.report.run_report import sealed_teacher


def kl(value):
    return {"true_kl": {"kl": value, "stderr": 0.01, "tokens": 9}}


STUDENT = {"student_before": kl(2.0), "student_after": kl(1.0)}


def test_a_black_box_keeps_its_truth():
    models = {name: {"fidelity": {}} for name in STUDENT}
    assert sealed_teacher(models, None, [], None) is None


def test_the_proxy_in_force_is_judged_after_each_round():
    models = STUDENT | {"base": kl(0.9), "w": kl(0.5), "one": kl(0.4), "two": kl(0.7), "three": kl(0.3)}
    rounds = [
        {"round": 1, "adapter": "one", "decision": "promote"},
        {"round": 2, "adapter": "two", "decision": "reject"},
        {"round": 3, "adapter": "three", "decision": "promote"},
    ]
    told = sealed_teacher(models, {"adapter": "w"}, rounds, None)
    assert told["kl_teacher_base"]["kl"] == 0.9
    assert [(e["round"], e["adapter"], e["kl"]) for e in told["kl_teacher_proxy"]] == [
        (0, "w", 0.5),
        (1, "one", 0.4),
        (2, "one", 0.4),
        (3, "three", 0.3),
    ]
    assert told["kl_teacher_student"]["after"]["kl"] == 1.0
    assert told["kl_teacher_white_box"] is None


def test_an_open_teacher_and_its_assistant_are_judged_too():
    models = STUDENT | {"white_box": kl(0.1), "assistant-1": kl(0.2)}
    told = sealed_teacher(models, None, [], {"adapter": "assistant-1"})
    assert {name: facts["kl"] for name, facts in told["kl_teacher_white_box"].items()} == {
        "teacher": 0.1,
        "assistant": 0.2,
    }
    assert sealed_teacher(models, None, [], None)["kl_teacher_white_box"]["assistant"] is None
    assert told["kl_teacher_proxy"] == []
    assert told["kl_teacher_base"] is None
