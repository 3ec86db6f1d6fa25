"""Who is asked in an evaluation: a run's proxy, student and snapshots; a study's, each proxy once."""

from __future__ import annotations

import pytest

from proxykd.errors import BenchmarkError
from proxykd.evaluation.harness import Answerer
from proxykd.runs.run_directory import RunDirectory
from proxykd.stages.assist import ASSIST, AssistResult
from proxykd.stages.distil import DISTIL
from proxykd.stages.score import SCORE
from proxykd.study.studies import StudyDirectory, validate_study
from services.cli.subjects import of_certificate, of_run, of_study
from tests.small_run import run_config
from tests.stage_results import distilled, fidelity, finish, labels, learned

PLAIN = Answerer(model="unused")
MADE = {
    SCORE: labels,
    ASSIST: lambda adapter: AssistResult(adapter=adapter, validation=fidelity(3.0), **learned(3.0)),
}


def trained(run, adapter, *, stage=SCORE, steps=()):
    """The markers of a run that has a student."""
    if adapter is not None:
        finish(run, stage, MADE[stage](adapter))
    finish(run, DISTIL, distilled())
    for step in steps:
        folder = run.snapshot(step)
        folder.mkdir(parents=True)
        (folder / "READY").touch()
    return run


def asked(subjects):
    return {
        subject.name: (subject.answerer.model, subject.adapter, [(run.id, key) for run, key in subject.reports])
        for subject in subjects
    }


@pytest.fixture
def run(tmp_path):
    return RunDirectory.create(run_config("m", str(tmp_path)))


def test_a_run_has_its_aligned_proxy_its_student_and_snapshots(run):
    trained(run, "r02-abc", steps=(20, 5))
    assert asked(of_run(run, PLAIN, None)) == {
        "proxy": (str(run.models / "proxy"), run.adapters / "r02-abc", [(run.id, "proxy")]),
        "student": (str(run.student), None, [(run.id, "student")]),
        "student@5": (str(run.snapshot(5)), None, [(run.id, "student@5")]),
        "student@20": (str(run.snapshot(20)), None, [(run.id, "student@20")]),
    }
    assert {subject.answerer.dtype for subject in of_run(run, PLAIN, None)} == {"float32"}
    assert {subject.answerer.dtype for subject in of_run(run, PLAIN, "bfloat16")} == {"bfloat16"}


@pytest.mark.parametrize(
    ("adapter", "stage", "expected"),
    [("base", SCORE, None), ("assistant-12", ASSIST, "assistant-12"), (None, SCORE, "no proxy")],
)
def test_other_methods_proxies_are_the_base_an_assistant_or_none(run, adapter, stage, expected):
    subjects = {subject.name: subject for subject in of_run(trained(run, adapter, stage=stage), PLAIN, None)}
    if expected == "no proxy":
        assert subjects.keys() == {"student"}
    else:
        assert subjects["proxy"].adapter == (expected and run.adapters / expected)


def test_a_run_without_a_student_is_refused(run):
    with pytest.raises(BenchmarkError, match="has no student yet; go on with: proxykd resume"):
        of_run(run, PLAIN, None)


def test_a_study_asks_each_proxy_once_for_all_arms_that_learned_from_it(tmp_path):
    sections = run_config("m", str(tmp_path)).model_dump(mode="json", exclude_defaults=True)
    del sections["name"], sections["seed"]
    small = {"title": "a smaller proxy", "set": {"proxy.drop_layers": [2, 3]}}
    arms = ["proxy_kd", "without_trust", "black_box_kd", "without_alignment", "small"]
    raw = {"name": "s", "seeds": [1, 2], "arms": arms, "own_arms": {"small": small}, "run": sections}
    study = StudyDirectory.create(validate_study(raw, "test"))
    adapters = {"proxy_kd": "r02", "without_trust": "r02", "without_alignment": "base", "small": "r02"}
    for arm in study.arms():
        seed = "" if adapters.get(arm.name) == "base" else f"-of-seed-{arm.seed}"
        trained(study.run(arm), adapters[arm.name] + seed if arm.name in adapters else None)
    subjects = of_study(study, PLAIN, None)
    assert len({subject.name for subject in subjects}) == len(subjects)
    students = [subject for subject in subjects if subject.reports[0][1] == "student"]
    proxies = [subject for subject in subjects if subject.reports[0][1] == "proxy"]
    assert len(students) == 10
    # An aligned one a seed for two arms, the base for both seeds, and the smaller one's a seed.
    assert sorted(len(proxy.reports) for proxy in proxies) == [1, 1, 2, 2, 2]
    assert {proxy.adapter for proxy in proxies if len(proxy.reports) == 1} == {
        subject.reports[0][0].adapters / f"r02-of-seed-{seed}"
        for seed, subject in zip((1, 2), proxies[-2:], strict=True)
    }


def test_a_certificate_asks_the_student_first_then_what_the_run_has_beside_it(run):
    trained(run, "r02-abc", steps=(5,))
    for folder in (run.models / "student", run.models / "proxy"):
        folder.mkdir(parents=True)
    base = ("base", str(run.models / "student"), None)
    proxy = ("proxy", str(run.models / "proxy"), run.adapters / "r02-abc")
    student = ("student", str(run.student), None)

    def found():
        return [(one.name, one.answerer.model, one.adapter) for one in of_certificate(run, PLAIN, None)]

    assert found() == [student, proxy, base]
    run.sft_student.mkdir()
    (run.sft_student / "READY").touch()
    assert found() == [student, ("sft", str(run.sft_student), None), proxy, base]
