"""What the command line prints of a finished run, and where one stands, from made-up numbers."""

from __future__ import annotations

import pytest

from actors.hosting.status import Work, run_status
from proxykd.evaluation.measures import MeanKl
from proxykd.report.report_model import RoundKl, SealedTeacherReport, StudentKl
from proxykd.report.run_report import build_report, write_report
from proxykd.runs.storage import write_json
from proxykd.study.saving import as_text
from proxykd.study.studies import StudyDirectory
from services.cli.report_tables import fidelity_table, print_report, print_study
from services.cli.terminal import status_lines, whole_progress
from tests.made_up_study import SIZES, made_up
from tests.told_run import tell_run


def cells(table):
    return list(zip(*(column.cells for column in table.columns), strict=True))


@pytest.fixture
def run(tmp_path):
    return tell_run(tmp_path / "runs")


def test_a_black_boxs_table_has_every_model_and_no_kl(run):
    rows = cells(fidelity_table(build_report(run, "")))
    assert [(name, where, nll, kl) for name, where, nll, _, kl in rows] == [
        ("proxy, warm-up", "validation", "3.6000 ± 0.1000", ""),
        ("proxy, round 1", "validation", "3.5500 ± 0.1000", ""),
        ("proxy, round 2", "validation", "3.5000 ± 0.1000", ""),
        ("proxy, base", "test", "4.0000 ± 0.1000", ""),
        ("proxy, warm-up", "test", "3.7000 ± 0.1000", ""),
        ("proxy, aligned", "test", "3.6500 ± 0.1000", ""),
        ("student, before", "test", "4.0000 ± 0.1000", ""),
        ("student, after", "test", "4.0000 ± 0.1000", ""),
    ]


def test_a_rejected_round_is_marked_and_has_the_kl_of_the_proxy_in_force(run):
    report = build_report(run, "")
    kls = [
        RoundKl(adapter="a", round=number, kl=kl, stderr=None, tokens=9) for number, kl in enumerate((0.5, 0.4, 0.4))
    ]
    before, after = (MeanKl(kl=kl, stderr=0.1, tokens=9) for kl in (2.0, 1.0))
    sealed = SealedTeacherReport(
        kl_teacher_proxy=kls,
        kl_teacher_student=StudentKl(before=before, offline=None, after=after),
        kl_teacher_base=MeanKl(kl=0.9, stderr=None, tokens=9),
        kl_teacher_white_box=None,
    )
    rounds = [report.rounds[0], report.rounds[1].model_copy(update={"decision": "reject"})]
    rows = cells(fidelity_table(report.model_copy(update={"sealed_teacher": sealed, "rounds": rounds})))
    assert [(name, kl) for name, *_, kl in rows] == [
        ("proxy, warm-up", "0.5000"),
        ("proxy, round 1", "0.4000"),
        ("proxy, round 2 (rejected)", "0.4000"),
        ("proxy, base", "0.9000"),
        ("proxy, warm-up", "0.5000"),
        ("proxy, aligned", "0.4000"),
        ("student, before", "2.0000 ± 0.1000"),
        ("student, after", "1.0000 ± 0.1000"),
    ]


def test_the_report_is_printed_with_seconds_and_places(run, capsys):
    write_report(run, "all 2 rounds done")
    print_report(Work.at(run.root))
    told = capsys.readouterr().out
    for text in ("align 2", "stopped aligning: all 2 rounds done", f"report:  {run.report}"):
        assert text in told
    assert [line.split() for line in told.splitlines() if line.strip().startswith("all ")] == [["all", "80"]]


@pytest.mark.parametrize("width", [60, 80])
def test_a_report_begins_with_its_outcome_and_fits_a_narrow_terminal(tmp_path, capsys, monkeypatch, width):
    run = tell_run(tmp_path / "runs", sft={"learning_rate": 1e-3, "global_batch": 8})
    write_report(run, "all 2 rounds done")
    monkeypatch.setenv("COLUMNS", str(width))
    print_report(Work.at(run.root))
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert " ".join(lines[:4]).startswith("The student's true KL from the teacher fell from 1.400 ± 0.010 to 0.900")
    table = lines[lines.index("Fidelity to tiny-sealed") : lines.index("Where the time went")]
    assert max(map(len, table)) <= width
    digits = 3 if width == 60 else 4
    for model, nll in (("student, SFT", 4.1), ("student, after", 4.0), ("proxy, warm-up", 3.7)):
        figures = f"{nll:.{digits}f} ± {0.1:.{digits}f}"
        assert [line for line in table if line.strip().split("  ")[0] == model and figures in line], model
    [paired] = [line for line in table if "less SFT, paired" in line]
    assert f"−{0.1:.{digits}f} ± {0.02:.{digits}f}" in paired


def test_a_studys_tables_are_of_its_arms_its_sizes_and_what_they_save(tmp_path, capsys):
    (tmp_path / "study.json").write_text("{}")
    report = made_up(reference="black_box_kd", sizes=SIZES)
    study = StudyDirectory(tmp_path)
    write_json(study.report, report.model_dump())
    print_study(study)
    told = capsys.readouterr().out
    assert "in brackets the paired difference to black-box KD" in told
    assert "…" not in told
    rows = [line.split() for line in told.splitlines()]
    [cells] = [row for row in rows if row[:2] == ["Proxy-KD", "200"]]
    [small] = [row for row in report.sizes if (row["arm"], row["size"]) == ("proxy_kd", 200)]
    assert cells[2:5] == [f"{small['held_out_nll']:.4f}", "±", f"{small['held_out_nll_ci']:.4f}"]
    for saving in report.savings:
        assert f"{as_text(saving)}  " in told
    write_json(study.report, made_up(reference="jsd").model_dump())
    print_study(study)
    told = capsys.readouterr().out
    assert "fewer" not in told.lower()
    assert "paired difference to JSD (white-box)" in told


def test_status_says_what_is_done(tmp_path):
    work = Work.at(tell_run(tmp_path, until="align-01").root)
    assert status_lines(run_status(work)) == [
        f"{work.run.id}: stopped (epoch 1)",
        "  models       done in 10 s",
        "  corpus       done in 10 s",
        "  warmup       done in 10 s",
        "  align 1      done in 10 s",
    ]
    assert whole_progress(work) == (4, 8, "stages")
