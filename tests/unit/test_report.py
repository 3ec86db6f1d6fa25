"""What report.json says of models whose truth is known."""

from __future__ import annotations

import json

import pytest

from proxykd.errors import IntegrityError, RunError
from proxykd.report.overview import fidelity, overview
from proxykd.report.report_model import RunReport, read_report
from proxykd.report.run_report import build_report, sealed_teacher, write_report
from proxykd.runs.storage import read_json, write_json
from proxykd.stages.align import ALIGN
from proxykd.stages.assist import ASSIST, AssistResult
from proxykd.stages.evaluate import EVALUATE
from proxykd.stages.results import Results
from proxykd.stages.warmup import WARMUP
from tests import stage_results as told
from tests.stage_results import aligned, evaluated, finished, scores, warmed_up
from tests.told_run import tell_run

KEYS = (
    "run", "teacher", "collection", "corpus", "stages", "rounds", "stop_reason", "proxy", "soft_labels", "retokenised",
    "trust", "white_box", "student", "sft", "grey_box", "sealed_teacher", "benchmarks",
)  # fmt: skip


def test_the_report_and_the_page_tell_the_same_of_the_same_run(tmp_path):
    run = tell_run(tmp_path)
    report, page = build_report(run, "all 2 rounds done").model_dump(), overview(run).model_dump()
    assert tuple(report) == KEYS
    for block in ("corpus", "soft_labels"):
        assert report[block] == page[block]
    assert report["trust"] | {"calibration": page["trust"]["calibration"]} == page["trust"], "which says it in words"
    assert report["corpus"]["dropped"] == {"empty": 2}
    assert report["trust"]["spearman_vs_true_kl"] == -0.4
    of_page = {"inspected", "accuracy_after_range"}
    assert report["rounds"] == [{key: one[key] for key in one if key not in of_page} for one in page["rounds"]]
    assert [one["pairs"] for one in report["rounds"]] == [12, 12]
    beside = {"true_kl": dict.fromkeys(("before", "offline", "after")), "sft": None}
    assert report["student"] | beside == page["student"]
    assert report["student"]["after"]["held_out_nll"] == 4.0
    assert {(one["seconds"], one["device_hours"]) for one in report["stages"]} == {(10.0, 8.0 * 2 / 3600)}


def test_the_report_is_read_back_as_it_was_written(tmp_path):
    run = tell_run(tmp_path)
    with pytest.raises(RunError, match=f"{run.id} has no report yet; go on with: proxykd resume"):
        read_report(run)
    report = write_report(run, "all 2 rounds done")
    assert read_report(run) == report
    assert read_json(run.report) == report.model_dump()
    assert "steps" not in read_json(run.report)["rounds"][0]


def test_what_another_version_wrote_is_refused_with_file_and_field(tmp_path):
    run = tell_run(tmp_path)
    write_report(run, "all 2 rounds done")
    for path, read in ((run.report, read_report), (ALIGN.marker(run, 2), overview)):
        whole = read_json(path)
        facts = whole["rounds"][1] if path == run.report else whole["result"]
        facts["step0_margin"] = facts.pop("decision")
        write_json(path, whole)
        field = "rounds.1.decision" if path == run.report else "result.decision"
        with pytest.raises(IntegrityError, match=f"{path.name}: {field}: Field required; another version of proxykd"):
            read(run)


def test_what_only_the_evaluation_knows_is_none_before_it(tmp_path):
    page = overview(tell_run(tmp_path, until="distil"))
    assert page.soft_labels.share_mass_over_095 is page.trust.spearman_vs_true_kl is None
    assert page.student.before is page.student.after is None
    assert len(page.student.curve) == 3


STUDENT = {"student_before": scores(kl=2.0), "student_after": scores(kl=1.0)}
ROUNDS = [
    aligned(1, "one"),
    aligned(2, "two", decision="reject", validation=told.fidelity(3.9)),
    aligned(3, "three"),
]


def results(models, *others):
    """Of an evaluation of these models, and of stages before it."""
    return Results([*others, finished(EVALUATE, evaluated(models))])


WARMED_UP = finished(WARMUP, warmed_up("w"))
THREE_ROUNDS = [finished(ALIGN, result, result.round) for result in ROUNDS]


def test_a_black_box_keeps_its_truth():
    assert sealed_teacher(results({name: scores() for name in STUDENT})) is None


def test_the_proxy_in_force_is_judged_after_each_round():
    kls = {"base": 0.9, "w": 0.5, "one": 0.4, "two": 0.7, "three": 0.3}
    models = STUDENT | {name: scores(kl=kl) for name, kl in kls.items()}
    sealed = sealed_teacher(results(models, WARMED_UP, *THREE_ROUNDS))
    assert sealed.kl_teacher_base.kl == 0.9
    assert [(one.round, one.adapter, one.kl) for one in sealed.kl_teacher_proxy] == [
        (0, "w", 0.5),
        (1, "one", 0.4),
        (2, "one", 0.4),
        (3, "three", 0.3),
    ]
    assert sealed.kl_teacher_student.after.kl == 1.0
    assert sealed.kl_teacher_white_box is None


def test_a_page_shows_a_rejected_rounds_own_validation_and_no_test_slice():
    way = fidelity(results({"base": scores(), "w": scores(), "one": scores()}, WARMED_UP, *THREE_ROUNDS[:2]))
    assert [(one.label, one.validation.held_out_nll, one.test is None, one.decision) for one in way] == [
        ("base", 4.0, False, None),
        ("warm-up", 3.6, False, None),
        ("round 1", pytest.approx(3.55), False, "promote"),
        ("round 2", 3.9, True, "reject"),
    ]
    assert [one.model_dump().keys() >= {"decision", "reason"} for one in way] == [False, False, True, True]


def test_an_open_teacher_and_its_assistant_are_judged_too():
    assist = finished(ASSIST, AssistResult(adapter="assistant-1", validation=told.fidelity(3.0), **told.learned(3.0)))
    models = STUDENT | {"white_box": scores(kl=0.1), "assistant-1": scores(kl=0.2)}
    sealed = sealed_teacher(results(models, assist))
    assert sealed.kl_teacher_white_box.teacher.kl == 0.1
    assert sealed.kl_teacher_white_box.assistant.kl == 0.2
    assert sealed_teacher(results(models)).kl_teacher_white_box.assistant is None
    assert sealed.kl_teacher_proxy == []
    assert sealed.kl_teacher_base is None


def test_a_reports_benchmarks_keep_subtasks_where_there_are_any(tmp_path):
    report = build_report(tell_run(tmp_path), "").model_dump()
    score = {"score": 0.5, "stderr": None, "n": 1, "unanswered": 0.0}
    benchmarks = {"student": {"csqa": score, "mmlu": score | {"subtasks": {"anatomy": score}}}}
    read = RunReport.model_validate(json.loads(json.dumps(report | {"benchmarks": benchmarks})))
    assert read.model_dump()["benchmarks"] == benchmarks
