"""A study's report as files: JSON, one self-contained page, figures (SVG and PNG), tables (CSV)."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure

from proxykd.runs.storage import write_atomic, write_json
from proxykd.study.comparison import MEASURES, known_measures
from proxykd.study.figures import as_png, as_svg, figures
from proxykd.study.saving import DRAWS, as_text, by_seed_as_text
from proxykd.study.studies import StudyDirectory
from proxykd.study.study_model import StudyReport
from proxykd.study.study_report import build_study_report, known_tasks
from proxykd.study.table_files import as_csv, flat, flat_saving, sizes_markdown, table_markdown

TEMPLATE = Path(__file__).parent / "templates" / "study.html.j2"


def write_study_report(directory: StudyDirectory) -> None:
    """Writes a study's report.json, its page, its tables (CSV, Markdown) and its figures (SVG, PNG)."""
    report = build_study_report(directory)
    folder = directory.report.parent
    drawn = figures(report)
    for name, figure in drawn.items():
        write_atomic(folder / "figures" / f"{name}.svg", as_svg(figure).encode())
        write_atomic(folder / "figures" / f"{name}.png", as_png(figure))
    write_atomic(folder / "arms.csv", as_csv([flat(arm) for arm in report.arms]))
    write_atomic(folder / "table.csv", as_csv(report.table))
    write_atomic(folder / "table.md", table_markdown(report).encode())
    if report.sizes:
        write_atomic(folder / "sizes.csv", as_csv(report.sizes))
        write_atomic(folder / "sizes.md", sizes_markdown(report).encode())
    if report.savings:
        write_atomic(folder / "savings.csv", as_csv([flat_saving(saving) for saving in report.savings]))
    if report.benchmarks:
        write_atomic(folder / "benchmarks.csv", as_csv(report.benchmarks))
    write_atomic(folder / "report.html", page(report, drawn).encode())
    write_json(directory.report, report.model_dump())


def page(report: StudyReport, drawn: dict[str, Figure]) -> str:
    """No script, no network, the figures inline."""
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(TEMPLATE.read_text())
    return template.render(
        report=report,
        measures=known_measures(report.table),
        size_measures=known_measures(report.sizes),
        tasks=known_tasks(report),
        title_of=lambda key: MEASURES[key][0],
        measured=lambda arm, key: MEASURES[key][1](arm),
        saved=as_text,
        saved_by_seed=by_seed_as_text,
        draws=DRAWS,
        figures={name: as_svg(figure) for name, figure in drawn.items()},
    )
