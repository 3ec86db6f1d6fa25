"""What the student's routes are told of a teacher in its place. Without Ray: the command line makes it before there is
one, and Ray reads its token as it is imported."""

from __future__ import annotations

from dataclasses import dataclass

from proxykd.certification.doubt import Doubt
from proxykd.config import CollectConfig


@dataclass(frozen=True)
class FallBack:
    """Who answers in the student's place where its doubt is `threshold` or more, and where to keep what it says."""

    config: CollectConfig
    doubt: Doubt
    threshold: float
    keep: str | None
