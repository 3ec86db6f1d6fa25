"""A study's tables as files: CSV, and Markdown for a document."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from proxykd.study.comparison import MEASURES, known_measures
from proxykd.study.saving import as_text, by_seed_as_text
from proxykd.study.study_model import ArmReport, Row, Saving, StudyReport


def as_csv(rows: Sequence[Row]) -> bytes:
    """A table with every column that any of the rows has."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def flat(arm: ArmReport) -> Row:
    """One run as a row: an arm with a seed, at its full size (`size` is None) or a smaller one."""
    names = {"name": arm.name, "seed": arm.seed, "size": arm.size, "records": arm.records, "run": arm.run}
    measures = {key: measure(arm) for key, (_, measure) in MEASURES.items()}
    return {**names, **measures, "own_device_hours": arm.own_device_hours}


def flat_saving(saving: Saving) -> Row:
    """A saving as a row, its seeds in one cell."""
    return saving.model_dump(exclude={"seeds"}) | {"by_seed": by_seed_as_text(saving)}


def table_markdown(report: StudyReport) -> str:
    """The table of arms: means, half 95 % intervals, differences to the reference in brackets."""
    measures = known_measures(report.table)
    rows = [[row["title"], *(_cell(row, key) for key in measures)] for row in report.table]
    return _markdown(["arm", *measures.values()], rows)


def sizes_markdown(report: StudyReport) -> str:
    """Quality against training records in the same form, and below it what is saved."""
    measures = known_measures(report.sizes)
    rows = [[row["title"], f"{row['records']:.0f}", *(_cell(row, key) for key in measures)] for row in report.sizes]
    text = _markdown(["arm", "training records", *measures.values()], rows)
    saved = [[one.title, MEASURES[one.measure][0], as_text(one), by_seed_as_text(one)] for one in report.savings]
    head = ["arm", "by", f"fewer records for {report.reference_title}'s quality", "by seed"]
    return f"{text}\n{_markdown(head, saved)}" if saved else text


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]]) + "\n"


def _cell(row: Row, key: str) -> str:
    if row[key] is None:
        return ""
    interval, difference = row[f"{key}_ci"], row.get(f"{key}_difference")
    text = f"{row[key]:.4f}" + ("" if interval is None else f" ± {interval:.4f}")
    if difference is None:
        return text
    interval = row[f"{key}_difference_ci"]
    return f"{text} ({difference:+.4f}" + ("" if interval is None else f" ± {interval:.4f}") + ")"
