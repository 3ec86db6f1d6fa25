"""Durations, shares, errors and tables, as every command prints them."""

from __future__ import annotations

import pytest
from rich.console import Console

from services.cli.formatting import clock, figure_table, share, with_error


@pytest.mark.parametrize(("seconds", "shown"), [(0, "0:00"), (59.9, "0:59"), (61, "1:01"), (4509.2, "75:09")])
def test_a_duration_is_minutes_and_seconds(seconds, shown):
    assert clock(seconds) == shown


def test_shares_and_errors():
    assert (share(1, 8), share(0, 0)) == ("12.5%", "0.0%")
    assert with_error(1.23456, 0.01234) == "1.2346 ± 0.0123"
    assert with_error(0.5, None, digits=3) == "0.500"


def test_figures_stand_to_the_right_of_words():
    table = figure_table("Where", "model", "slice", "NLL", words=2)
    table.add_row("a", "test", "1.5")
    assert [column.justify for column in table.columns] == ["left", "left", "right"]
    console = Console(width=40)
    with console.capture() as shown:
        console.print(table)
    assert shown.get().split() == ["Where", "model", "slice", "NLL", "─" * 21, "a", "test", "1.5"]
