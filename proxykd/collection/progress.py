"""How far a collection is, and how it ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from proxykd.collection.response_log import Kept


@dataclass
class CollectionProgress:
    """Where collecting stands. `minute` counts the answers of the last minute."""

    done: int = 0
    total: int = 0
    failed: int = 0
    screened: int = 0
    retried: int = 0
    limited: int = 0
    in_flight: int = 0
    minute: int = 0
    cost: float = 0.0
    tokens: int = 0


@dataclass
class Outcome:
    """How collecting ended. `stop` says why where it ended early; `failed` has the last error of each lost prompt."""

    kept: Kept
    progress: CollectionProgress
    failed: dict[str, str] = field(default_factory=dict)
    stop: Exception | None = None


Show = Callable[[CollectionProgress], None]
