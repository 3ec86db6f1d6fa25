"""The arms of the method as data: what each `distillation.source` asks of a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Teaching:
    """From what the student learns."""

    labels: bool = False
    """A proxy's soft labels on the teacher's text, stored beforehand."""
    aligned: bool = False
    """The proxy is aligned to the teacher first; otherwise its base gives the labels."""
    shift: bool = False
    """Not those labels as they are, but the student's own start, moved as alignment moved the proxy."""
    open_teacher: bool = False
    """An open teacher's whole distribution, on that one's own completions."""
    assistant: bool = False
    """An assistant's, which the open teacher has taught (TAKD)."""


TEACHINGS = {
    "proxy": Teaching(labels=True, aligned=True),
    "base": Teaching(labels=True),
    "shift": Teaching(labels=True, aligned=True, shift=True),
    "none": Teaching(),
    "white_box": Teaching(open_teacher=True),
    "assistant": Teaching(open_teacher=True, assistant=True),
}
