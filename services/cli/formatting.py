"""How the command line writes durations, shares, values with their errors, tables and bars."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.progress import BarColumn, TextColumn
from rich.table import Table

PLAIN_EVERY_S = 15.0
"""Between two lines of progress in a log, which has no bar."""


def clock(seconds: float) -> str:
    """Returns minutes and whole seconds: 75:09."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"


def share(part: int, whole: int) -> str:
    """Returns a percentage with one decimal; of nothing, none is 0.0%."""
    return f"{part / max(1, whole):.1%}"


def with_error(value: float, error: float | None, digits: int = 4) -> str:
    """Returns `value ± error`, to so many decimals; the value alone where its error is unknown."""
    return f"{value:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def stage_title(stage: str, number: int | None) -> str:
    """Returns a stage's name, with its round where it has one: align 2."""
    return f"{stage} {number}" if number else stage


def figure_table(title: str | None, *columns: str, words: int = 1, **look: Any) -> Table:
    """Returns a table whose first columns, `words` of them, hold words, and whose others hold figures, to the right.
    `look` is rich's own."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, **look)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < words else "right")
    return table


def bar_columns() -> tuple[TextColumn, BarColumn, TextColumn]:
    """Returns columns for what a task is, how far it is, and its field `detail`."""
    return TextColumn("{task.description}"), BarColumn(bar_width=28), TextColumn("{task.fields[detail]}", style="dim")
