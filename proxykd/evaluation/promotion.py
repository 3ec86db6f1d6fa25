"""Whether a round's adapter is promoted, how gentle the next round is, and when to stop: policies, which say why; the
coordinator executes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, lgamma, log, log1p
from typing import Literal

from proxykd.config import AlignmentConfig
from proxykd.evaluation.measures import TaskChange, ValidationChange
from proxykd.evaluation.standard_errors import student_t

SURE = 0.95
"""How sure a one-sided statement about a change has to be."""


@dataclass(frozen=True)
class NllChange:
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

    @property
    def surely_worse(self) -> bool:
        """On other text like this, by a one-sided t-test at `SURE`."""
        return self._surely_above(0.0)

    @property
    def surely_better(self) -> bool:
        return self.stderr is not None and self.nll + self._margin < 0.0

    def surely_gained_less(self, than: float) -> bool:
        """Whether so many nats a token are more than it improved by, likewise."""
        return self._surely_above(-than)

    def _surely_above(self, bound: float) -> bool:
        return self.stderr is not None and self.nll - self._margin > bound

    @property
    def _margin(self) -> float:
        return student_t(SURE, self.prompts - 1) * self.stderr if self.stderr else 0.0

    measured = "validation NLL"
    unit = " nats a token"

    @property
    def short(self) -> str:
        return f"{self.nll:+.4f}" + ("" if self.stderr is None else f" ± {self.stderr:.4f}")

    def measure(self) -> ValidationChange:
        """Returns the change in the form that results hold: in nats a token."""
        return ValidationChange(nll=self.nll, stderr=self.stderr, prompts=self.prompts)

    def __str__(self) -> str:
        return f"{self.measured} {self.before:.4f} -> {self.after:.4f} ({self.short}{self.unit})"


@dataclass(frozen=True)
class ScoreChange:
    """Of a task's score, from one adapter to the next, compared question by question.

    Questions that both answer alike say nothing. Were both as good, each of the others would be won or lost by the toss
    of a coin: the exact form of McNemar's test. It holds at any size, where a t-test of the differences takes
    three losses against none for sure (n = 100: t = 1.75), which a coin gives once in eight.
    """

    right: int
    """Before."""
    won: int
    """Answered right now, and not before."""
    lost: int
    """The other way round."""
    questions: int

    @property
    def surely_worse(self) -> bool:
        """On other questions like these, one-sided, at `SURE`."""
        return _at_most(self.won, self.won + self.lost, 0.5) <= 1 - SURE

    @property
    def surely_better(self) -> bool:
        return _at_most(self.lost, self.won + self.lost, 0.5) <= 1 - SURE

    def surely_gained_less(self, than: float) -> bool:
        """Whether it improved by less than such a share of all questions: the share that was won, which no gain
        exceeds, is surely smaller."""
        return _at_most(self.won, self.questions, than) <= 1 - SURE

    measured = "task score"
    unit = ""

    @property
    def short(self) -> str:
        return f"{self.won} won, {self.lost} lost of {self.questions}"

    def measure(self) -> TaskChange:
        """Returns the change in the form that results hold."""
        before, after = (right / self.questions for right in (self.right, self.right + self.won - self.lost))
        return TaskChange(before=before, after=after, won=self.won, lost=self.lost, questions=self.questions)

    def __str__(self) -> str:
        measured = self.measure()
        chance = _at_most(min(self.won, self.lost), self.won + self.lost, 0.5)
        return f"{self.measured} {measured.before:.4f} -> {measured.after:.4f} ({self.short}, p {chance:.3f})"


Change = NllChange | ScoreChange
"""By the run's measure."""


def _at_most(count: int, of: int, share: float) -> float:
    """The chance of so many or fewer successes in `of` independent tries that succeed with probability `share`."""
    if share == 0:
        return 1.0
    ways = (lgamma(of + 1) - lgamma(i + 1) - lgamma(of - i + 1) for i in range(count + 1))
    return sum(exp(way + i * log(share) + (of - i) * log1p(-share)) for i, way in enumerate(ways))


@dataclass(frozen=True)
class Decision:
    verdict: Literal["promote", "reject"]
    reason: str
    warning: bool = False


def decide(change: Change) -> Decision:
    """Reject a round that is surely worse by the run's measure; promote any other, with a warning where it is not
    surely better either."""
    if change.surely_worse:
        return Decision("reject", f"{change}: surely worse", warning=True)
    if change.surely_better:
        return Decision("promote", str(change))
    return Decision("promote", f"{change}: better or worse, within its error", warning=True)


def round_rate(verdicts: Sequence[str], config: AlignmentConfig) -> float:
    """The learning rate of the round after those with these verdicts: each rejection has made it gentler."""
    return config.learning_rate * config.after_rejection ** verdicts.count("reject")


def stop_reason(changes: Sequence[Change | None], config: AlignmentConfig) -> str | None:
    """Why the alignment ends after the rounds so far, or None. `changes` are those of the proxy in force, by round:
    None where that was rejected.

    A round is idle where it has surely improved by less than `min_improvement`: noise that hides an improvement is no
    convergence.
    """
    rounds = len(changes)
    if rounds >= config.rounds:
        return f"all {config.rounds} rounds done"
    last = changes[-config.patience :]
    if rounds >= config.patience and all(
        change is None or change.surely_gained_less(config.min_improvement) for change in last
    ):
        by = NllChange if config.task is None else ScoreChange
        changed = "; ".join("rejected" if change is None else change.short for change in last)
        return (
            f"converged: {by.measured} improved by less than {config.min_improvement:g}{by.unit} for {config.patience} "
            f"rounds ({changed})"
        )
    return None
