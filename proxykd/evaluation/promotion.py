"""Whether a round's adapter is promoted, how gentle the next round is, and when to stop: policies, which say why; the
coordinator executes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from proxykd.config import AlignmentConfig
from proxykd.evaluation.measures import ValidationChange
from proxykd.evaluation.standard_errors import student_t

SURE = 0.95
"""How sure a one-sided statement about a change has to be."""


@dataclass(frozen=True)
class Change:
    """Of the validation NLL, nats a token, from one adapter to the next, compared record by record: what all records
    have in common cancels, so that its error is far below that of either NLL."""

    before: float
    after: float
    stderr: float | None
    """None where a single prompt says nothing about others."""
    prompts: int

    @property
    def nll(self) -> float:
        return self.after - self.before

    def surely_above(self, bound: float) -> bool:
        """Whether the change on other text like this is above `bound`, by a one-sided t-test at `SURE`."""
        return self.stderr is not None and self.nll - self._margin > bound

    def surely_below(self, bound: float) -> bool:
        """Whether it is below `bound`, likewise."""
        return self.stderr is not None and self.nll + self._margin < bound

    @property
    def _margin(self) -> float:
        return student_t(SURE, self.prompts - 1) * self.stderr if self.stderr else 0.0

    def kept(self) -> Change:
        """Returns no change, as where this one was rejected: the adapter before stays in force."""
        return Change(self.before, self.before, 0.0, self.prompts)

    @property
    def error(self) -> str:
        return "" if self.stderr is None else f" ± {self.stderr:.4f}"

    def measure(self) -> ValidationChange:
        """Returns the change in the form that results hold: in nats a token."""
        return ValidationChange(nll=self.nll, stderr=self.stderr, prompts=self.prompts)

    def __str__(self) -> str:
        change = f"{self.nll:+.4f}{self.error} nats a token"
        return f"validation NLL {self.before:.4f} -> {self.after:.4f} ({change})"


@dataclass(frozen=True)
class Decision:
    verdict: Literal["promote", "reject"]
    reason: str
    warning: bool = False


def decide(change: Change) -> Decision:
    """Reject a round that has surely raised the validation NLL; promote any other, with a warning where it has not
    surely lowered it either."""
    if change.surely_above(0.0):
        return Decision("reject", f"{change}: surely worse", warning=True)
    if change.surely_below(0.0):
        return Decision("promote", str(change))
    return Decision("promote", f"{change}: better or worse, within its error", warning=True)


def round_rate(verdicts: Sequence[str], config: AlignmentConfig) -> float:
    """The learning rate of the round after those with these verdicts: each rejection has made it gentler."""
    return config.learning_rate * config.after_rejection ** verdicts.count("reject")


def stop_reason(changes: Sequence[Change], config: AlignmentConfig) -> str | None:
    """Why the alignment ends after the rounds so far, or None. `changes` are those of the proxy in force, by round.

    A round is idle where it has surely improved the validation NLL by less than `min_improvement`: noise that hides
    an improvement is no convergence.
    """
    rounds = len(changes)
    if rounds >= config.rounds:
        return f"all {config.rounds} rounds done"
    last = changes[-config.patience :]
    if rounds >= config.patience and all(change.surely_above(-config.min_improvement) for change in last):
        changes_in_nll = ", ".join(f"{change.nll:+.4f}{change.error}" for change in last)
        return (
            f"converged: validation NLL improved by less than {config.min_improvement:g} nats a token "
            f"for {config.patience} rounds ({changes_in_nll})"
        )
    return None
