"""A certificate on a terminal: the verdicts, a slice a row, and what is to be known of the judge."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from proxykd.certification.certificate_model import Certificate, DoubtReport, SliceVerdict
from proxykd.certification.verdicts import Verdict
from proxykd.certification.wording import (
    bounds,
    doubt_sentence,
    doubts,
    judge_sentence,
    length_sentence,
    not_worse,
    price_sentence,
    sentence,
    signed,
    wanted,
)
from services.cli.formatting import figure_table

COLOURS = {Verdict.READY: "green", Verdict.NOT_READY: "red", Verdict.UNDECIDED: "yellow"}


def print_certificate(certificate: Certificate, console: Console, folder: Path) -> None:
    """The verdict in a sentence, the slices, models beside the student, the judge; where all of it lies."""
    console.print(sentence(certificate))
    console.print(_slices(certificate))
    if certificate.facts.models or certificate.overall.right:
        console.print(_models(certificate))
    console.print(
        f"net: wins less losses, a prompt, both orders of a pair together; from-to: its one-sided 95 % bounds by "
        f"itself. Ready: no worse than the teacher by {certificate.margin:g} or more, at {certificate.level:.0%} over "
        f"all slices."
    )
    if certificate.judge is not None:
        console.print(judge_sentence(certificate.judge))
    if certificate.length is not None:
        console.print(length_sentence(certificate.length))
    for whose, doubt in doubts(certificate):
        if doubt.curve:
            console.print(_cascade(whose, doubt))
            console.print(price_sentence(doubt))
        console.print(doubt_sentence(doubt))
    console.print(f"certificate: {folder / 'certificate.json'}", soft_wrap=True)
    console.print(f"page:        {folder / 'certificate.html'}", soft_wrap=True)


def _slices(certificate: Certificate) -> Table:
    unread = ("unread",) if any(one.student.unread for one in certificate.slices) else ()
    columns = ("prompts", "win", "tie", "loss", *unread, "net", "from-to", "p ready", "verdict", "more needed")
    table = figure_table(f"{certificate.facts.run} against {certificate.facts.teacher}", "slice", *columns)
    for one in certificate.slices:
        mine, colour = one.student, COLOURS[one.verdict]
        table.add_row(
            _name(one),
            *map(str, (mine.prompts, mine.wins, mine.ties, mine.losses, *([mine.unread] if unread else []))),
            signed(mine.net),
            bounds(mine),
            f"{one.p_ready:.3f}",
            f"[{colour}]{one.verdict}[/]",
            wanted(one),
        )
    return table


def _cascade(whose: str, doubt: DoubtReport) -> Table:
    """What comes of sending the doubtful prompts on to the teacher."""
    priced = ("cost",) if doubt.price else ()
    columns = ("doubt from", "not worse", "net", "from-to", "at random", "at best", *priced)
    table = figure_table(f"the most doubtful prompts by {whose} log-probs, sent on to the teacher", "share", *columns)
    for one in doubt.curve:
        table.add_row(
            f"{one.share:.0%}",
            f"{one.threshold:.3f}" if one.sent else "",
            f"{not_worse(one):.1%}",
            signed(one.answers.net),
            bounds(one.answers),
            signed(one.at_random),
            signed(one.at_best),
            *([f"{one.cost:.4g}"] if one.cost is not None else []),
        )
    return table


def _models(certificate: Certificate) -> Table:
    """Over all prompts."""
    one = certificate.overall
    table = figure_table(
        "over all prompts, against the teacher", "model", "win", "tie", "loss", "net", "from-to", "right"
    )
    for name, found in {"student": one.student, **one.beside}.items():
        right = f"{one.right[name]:.3f}" if name in one.right else ""
        figures = (str(found.wins), str(found.ties), str(found.losses))
        table.add_row(name, *figures, signed(found.net), bounds(found), right)
    if one.right:
        table.add_row("teacher", "", "", "", "", "", f"{one.right['teacher']:.3f}")
    return table


def _name(one: SliceVerdict) -> str:
    return one.name if one.kind == one.name else f"{one.kind}: {one.name}"
