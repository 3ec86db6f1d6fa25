"""A finished run's or study's numbers as tables of a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console
from rich.table import Table

from actors.hosting.status import Work
from proxykd.evaluation.measures import Fidelity, MeanKl
from proxykd.report.outcome import Estimate, outcome
from proxykd.report.report_model import RunReport, read_report
from proxykd.runs.json_model import read_model
from proxykd.runs.run_directory import RunDirectory
from proxykd.stages.evaluate import EVALUATE
from proxykd.study.comparison import MEASURES, known_measures
from proxykd.study.saving import as_text, by_seed_as_text
from proxykd.study.studies import StudyDirectory
from proxykd.study.study_model import Row, StudyReport
from services.cli.formatting import figure_table, stage_title, with_error

FILE_WIDTH, NARROW, MEASURE_WIDTH, RECORDS_WIDTH = 160, 78, 21, 10
"""Characters: of a table in a log, which has no width of its own, below which a run's table is laid out for a narrow
terminal, of a study's measure, and of its training records."""
ModelRow = tuple[str, Fidelity, MeanKl | None]


def print_report(work: Work) -> None:
    if work.study is None:
        print_run(work.run)
    else:
        print_study(work.study)


def print_run(run: RunDirectory) -> None:
    """What a finished run came to, in a sentence; its short tables, fidelity by round, the student before and after,
    seconds; where it lies."""
    report = read_report(run)
    console = Console(highlight=False)
    if evaluated := EVALUATE.finished(run):
        console.print(outcome(evaluated.result).sentence)
    console.print(fidelity_table(report, console.width))
    console.print("± is a standard error; what all records have in common cancels in a paired difference.")
    console.print(_stage_table(report))
    if report.rounds:
        console.print(f"stopped aligning: {report.stop_reason}")
    console.print(f"student: {run.student}", soft_wrap=True)
    console.print(f"report:  {run.report}", soft_wrap=True)
    load = f'transformers.pipeline("text-generation", "{run.student}")'
    console.print(f"load it: python -c 'import transformers; chat = {load}'", soft_wrap=True, markup=False)


def print_study(study: StudyDirectory) -> None:
    """An arm a row: the means over its seeds, the difference to the reference in brackets. As many measures as the
    terminal is wide for; the page has all. Then what fewer training records give, where the study has sizes."""
    report = read_model(study.report, StudyReport)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else FILE_WIDTH)
    console.print(_arm_table(report, console.width))
    if report.sizes:
        console.print(_size_table(report, console.width))
    if report.savings:
        console.print(_saving_table(report))
    beside = f"; in brackets the paired difference to {report.reference_title}" if report.reference_title else ""
    console.print(f"± half a 95 % confidence interval over seeds{beside}", soft_wrap=True)
    console.print(f"report: {study.report.with_name('report.html')}", soft_wrap=True)


def _arm_table(report: StudyReport, width: int) -> Table:
    measures = _fitting(report.table, width)
    seeds = ", ".join(map(str, report.study.seeds))
    table = figure_table(f"{report.study.id}: test slice, mean over seeds {seeds}", "arm", *measures.values())
    group = None
    for row in report.table:
        if group not in (None, row["group"]):
            table.add_section()
        group = row["group"]
        table.add_row(row["title"], *(_compared(row, key) for key in measures))
    return _unwrapped(table)


def _size_table(report: StudyReport, width: int) -> Table:
    measures = _fitting(report.sizes, width - RECORDS_WIDTH)
    table = figure_table("What fewer training records give", "arm", "records", *measures.values())
    arm = None
    for row in report.sizes:
        if arm not in (None, row["arm"]):
            table.add_section()
        arm = row["arm"]
        table.add_row(row["title"], f"{row['records']:.0f}", *(_compared(row, key) for key in measures))
    return _unwrapped(table)


def _saving_table(report: StudyReport) -> Table:
    title = f"Fewer records for what {report.reference_title} has from all of its own"
    table = figure_table(title, "arm", "by", "fewer", "by seed", words=4)
    for saving in report.savings:
        table.add_row(saving.title, MEASURES[saving.measure][0], as_text(saving), by_seed_as_text(saving))
    return table


def _fitting(rows: Sequence[Row], width: int) -> dict[str, str]:
    """As many of a table's measures as fit beside its titles, one at least."""
    titles = max(len(row["title"]) for row in rows)
    return dict(list(known_measures(rows).items())[: max(1, (width - titles - 2) // MEASURE_WIDTH)])


def _unwrapped(table: Table) -> Table:
    for column in table.columns:
        column.no_wrap = True
    return table


def _compared(row: Row, key: str) -> str:
    if row[key] is None:
        return ""
    difference = row.get(f"{key}_difference")
    return with_error(row[key], row[f"{key}_ci"]) + ("" if difference is None else f"\n({difference:+.4f})")


def fidelity_table(report: RunReport, width: int = FILE_WIDTH) -> Table:
    """Every model of a run against the teacher: the proxy by round on the validation slice, then all on the test
    slice, and the student less SFT; with the true KL where the teacher's seal was opened.

    Below NARROW characters the slice is a line above its models, and figures have three decimals.
    """
    narrow = width < NARROW
    digits = 3 if narrow else 4
    words = ["model"] if narrow else ["model", "slice"]
    title, kl_title = f"Fidelity to {report.teacher.model}", "true KL" if narrow else "true KL (test)"
    table = figure_table(title, *words, "NLL a token", "top-1", kl_title, words=len(words), pad_edge=not narrow)
    for column in table.columns[1:]:
        column.no_wrap = True
    for slice_name, rows in (("validation", _validation_rows(report)), ("test", _test_rows(report))):
        table.add_section()
        where = [] if narrow else [slice_name]
        if narrow:
            table.add_row(f"{slice_name}:", "", "", "")
        for model, measured, kl in rows:
            nll = with_error(measured.held_out_nll, measured.stderr, digits)
            true_kl = with_error(kl.kl, kl.stderr, digits) if kl else ""
            table.add_row(model, *where, nll, f"{measured.top1_agreement:.{digits}f}", true_kl)
    if report.sft:
        less = report.sft.student_less_sft
        nll = _change(less.nll, less.nll_stderr, digits)
        true_kl = _change(less.true_kl, less.true_kl_stderr, digits) if less.true_kl is not None else ""
        table.add_row("less SFT, paired", *([] if narrow else ["test"]), nll, "", true_kl)
    return table


def _change(value: float, stderr: float | None, digits: int) -> str:
    return Estimate(value=value, stderr=stderr).told_as_change(digits)


def _validation_rows(report: RunReport) -> Iterator[ModelRow]:
    kls = _kl_by_round(report)
    if report.proxy and report.proxy.validation:
        yield "proxy, warm-up", report.proxy.validation.warmup, kls.get(0)
    for one in report.rounds:
        note = "" if one.decision == "promote" else " (rejected)"
        yield f"proxy, round {one.round}{note}", one.validation, kls.get(one.round)


def _test_rows(report: RunReport) -> Iterator[ModelRow]:
    sealed, kls = report.sealed_teacher, _kl_by_round(report)
    if proxy := report.proxy:
        yield "proxy, base", proxy.base, sealed.kl_teacher_base if sealed else None
        if proxy.warmup:
            yield "proxy, warm-up", proxy.warmup, kls.get(0)
            yield "proxy, aligned", proxy.aligned, kls.get(len(report.rounds))
    if opened := report.white_box:
        kl = sealed.kl_teacher_white_box if sealed else None
        yield "open teacher", opened.teacher, kl.teacher if kl else None
        if opened.assistant:
            yield "assistant", opened.assistant, kl.assistant if kl else None
    yield "student, before", report.student.before, sealed.kl_teacher_student.before if sealed else None
    if report.sft:
        yield "student, SFT", report.sft.after, report.sft.true_kl
    if report.student.offline:
        yield "student, offline", report.student.offline, sealed.kl_teacher_student.offline if sealed else None
    yield "student, after", report.student.after, sealed.kl_teacher_student.after if sealed else None


def _kl_by_round(report: RunReport) -> Mapping[int, MeanKl]:
    return {one.round: one for one in report.sealed_teacher.kl_teacher_proxy} if report.sealed_teacher else {}


def _stage_table(report: RunReport) -> Table:
    table = figure_table("Where the time went", "stage", "seconds", "records", "tokens")
    for cost in report.stages:
        title = stage_title(cost.stage, cost.round)
        table.add_row(title, f"{cost.seconds:.0f}", str(cost.records), str(cost.tokens))
    table.add_section()
    table.add_row("all", f"{sum(cost.seconds for cost in report.stages):.0f}", "", "")
    return table
