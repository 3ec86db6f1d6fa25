"""Records as a terminal shows them: prompt, completion and stop token apart, control tokens and white space visible."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.text import Text

from proxykd.planning.preview import Shown
from proxykd.text.token_spans import Span

GUTTER = 12
LINES = 54
"""Of all records' prompts and completions together."""
NEWLINE, SPACE, TAB = "↵", "·", "→"
KEPT = "\u200d\u3000"
"""Not printable by Python's rule, yet no secrets: within emoji, and between CJK words."""
STYLES = {
    "prompt": ("cyan", "bold magenta"),
    "completion": ("green", "bold magenta"),
    "stop": ("red", "bold red"),
}
"""Of the text and of the control tokens of each part."""


def print_records(console: Console, records: Sequence[Shown], max_length: int, has_completions: bool) -> None:
    """Prints records, each within its share of the terminal's lines."""
    marked = console.no_color or not console.is_terminal
    most = max(6, LINES // max(1, 2 * len(records)))
    for record in records:
        console.print()
        console.print(_heading(record, max_length, has_completions), soft_wrap=True)
        sides = {"prompt": record.prompt}
        if has_completions:
            sides["completion"] = record.completion
            if record.stop is not None:
                sides["stop"] = (record.stop,)
        for name, spans in sides.items():
            text = visible(spans, *STYLES[name], marked)
            lines = list(text.wrap(console, console.width - GUTTER, overflow="fold"))
            _print_lines(console, name, _clipped(lines, most, from_end=name == "prompt"))


def _heading(record: Shown, max_length: int, has_completions: bool) -> Text:
    measured = record.measured
    lengths = f"{measured.prompt} tokens"
    if has_completions:
        lengths = f"{measured.prompt} + {measured.kept} tokens of {max_length}"
        if record.stop is None:
            lengths += ", ends by length"
        if measured.kept != measured.completion:
            lengths += f", cut from {measured.completion}"
    return Text(f"{measured.record.id}, {measured.slice}, {lengths}", style="bold")


def visible(spans: Iterable[Span], style: str, control: str, marked: bool) -> Text:
    """Returns the text with white space and unprintable characters shown; control tokens in brackets where `marked`."""
    text = Text()
    for span in spans:
        if span.control:
            text.append(f"⟦{span.text}⟧" if marked else span.text, control)
            continue
        *lines, last = span.text.split("\n")
        for line in lines:
            text.append(_printable(line, ends=True), style).append(f"{NEWLINE}\n", "dim")
        text.append(_printable(last, ends=False), style)
    if text.plain.endswith(" "):
        bare = text.plain.rstrip(" ")
        text = text[: len(bare)].append(SPACE * (len(text) - len(bare)), "dim")
    return text


def _printable(line: str, ends: bool) -> str:
    """A line with what a terminal would not show; spaces at its end too, where it `ends` there."""
    bare = line.rstrip(" ") if ends else line
    return "".join(map(shown, bare)) + SPACE * (len(line) - len(bare))


def shown(character: str) -> str:
    """Returns the character, or what stands for one that a terminal would not show or would obey."""
    if character == "\t":
        return f"{TAB}   "
    return character if character.isprintable() or character in KEPT else character.encode("unicode_escape").decode()


def _clipped(lines: list[Text], most: int, from_end: bool) -> list[Text]:
    """At most `most` lines: of a prompt its end, where the question stands, of a completion its beginning."""
    if lines and not lines[-1].plain:
        lines.pop()
    left = len(lines) - most + 1
    if left <= 2:
        return lines
    gap = Text(f"[{left} lines more]", style="dim italic")
    head, tail = (2, most - 3) if from_end else (most - 3, 2)
    return [*lines[:head], gap, *lines[len(lines) - tail :]]


def _print_lines(console: Console, name: str, lines: Iterable[Text]) -> None:
    for label, line in zip([name, *[""] * 1000], lines, strict=False):
        line.rstrip()
        console.print(Text.assemble((f"{label:>{GUTTER - 1}} ", "dim"), line), soft_wrap=True)
