"""What came of a prompt, and what a set of outcomes comes to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from proxykd.certification.certificate_model import Tally
from proxykd.certification.verdicts import counted, high_bound, low_bound

DIGITS = 6
"""Of p-values, bounds and doubts: what a certificate says must not depend on in which order a machine adds up."""


@dataclass(frozen=True)
class Outcome:
    """Of one prompt: what it is at worst and at best, which differ where the judge has not judged both orders."""

    worst: float
    best: float

    @property
    def read(self) -> bool:
        return self.worst == self.best


def tally(outcomes: Sequence[Outcome]) -> Tally:
    values = [one.worst for one in outcomes if one.read]
    counts = counted(values)
    return Tally(
        prompts=len(outcomes),
        wins=sum(value > 0 for value in values),
        ties=sum(value == 0 for value in values),
        losses=sum(value < 0 for value in values),
        unread=len(outcomes) - len(values),
        net=math.fsum(values) / len(values) if values else None,
        low=round(low_bound(counts), DIGITS) if values else None,
        high=round(high_bound(counts), DIGITS) if values else None,
    )
