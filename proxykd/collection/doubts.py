"""Refusals that do not say whose fault they are: the prompt's, or the request's and the account's.

A request that was answered later shows that the ones before were refused for their prompts. Where none is answered, the
shortest prompt that is left is sent as a probe: if it is refused too, it is none of the prompts'.
"""

from __future__ import annotations

from dataclasses import dataclass

from proxykd.collection.requests import Request
from proxykd.errors import TeacherError

UNCLEAR_IN_A_ROW = 8
"""Refusals without an answer in between, from which on a probe is sent."""


@dataclass(frozen=True)
class Refusal:
    """`since` is the time of `time.monotonic` from which on an answered request shows whose fault it was."""

    since: float
    request: Request
    chunk: int
    message: str
    """The provider's words."""


class Doubts:
    """The refusals whose fault is open. `probe` is the request that is to tell."""

    def __init__(self) -> None:
        self._open: list[Refusal] = []
        self.probe: Request | None = None

    def __bool__(self) -> bool:
        return bool(self._open)

    @property
    def need_a_probe(self) -> bool:
        return self.probe is None and len(self._open) >= UNCLEAR_IN_A_ROW

    def is_probe(self, request: Request) -> bool:
        return self.probe == request

    def add(self, refusal: Refusal) -> None:
        self._open.append(refusal)

    def settled_by(self, began: float) -> list[Refusal]:
        """A request that began at `began` was answered: returns the refusals until then, which were their prompts'."""
        settled = [refusal for refusal in self._open if refusal.since <= began]
        self._open = [refusal for refusal in self._open if refusal.since > began]
        if settled:
            self.probe = None
        return settled

    def error(self) -> TeacherError:
        """What stops the collection where it was none of the prompts'."""
        return TeacherError(
            f"{len(self._open)} prompts were refused and none was answered since, so that it may be the request "
            f"or the account; the last one: {self._open[-1].message}\nmend what it speaks of in teacher.* or the "
            f"account, or take such prompts out, then start again; nothing was put apart for it"
        )
