"""The policies of the alignment: which records a round takes, whether its adapter is promoted, when to stop.

Policies decide; the coordinator executes; each decision says why.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from proxykd.config import AlignmentConfig
from proxykd.errors import CorpusError
from proxykd.standard_errors import student_t

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
        if self.stderr is None:
            return False
        error = student_t(SURE, self.prompts - 1) * self.stderr if self.stderr else 0.0
        return self.nll - error > bound

    def kept(self) -> Change:
        """None at all, where this one was rejected: the adapter before stays in force."""
        return Change(self.before, self.before, 0.0, self.prompts)

    @property
    def error(self) -> str:
        return "" if self.stderr is None else f" ± {self.stderr:.4f}"

    def facts(self) -> dict[str, float | int | None]:
        return {"nll": self.nll, "stderr": self.stderr, "prompts": self.prompts}

    def __str__(self) -> str:
        change = f"{self.nll:+.4f}{self.error} nats a token"
        return f"validation NLL {self.before:.4f} -> {self.after:.4f} ({change})"


@dataclass(frozen=True)
class Decision:
    verdict: Literal["promote", "reject"]
    reason: str
    warning: bool = False


def require_rounds(records: int, config: AlignmentConfig) -> None:
    """Refuses an alignment of which some round would have no record, before anything is trained.

    Raises:
        CorpusError: D_p has fewer records than there are rounds to share it.
    """
    if config.pairs_per_round is None and records < config.rounds:
        raise CorpusError(
            f"the alignment slice has {records} records for alignment.rounds={config.rounds}, which share it: some "
            f"rounds would have none; add records, set alignment.rounds={records} or fewer, or set "
            f"alignment.pairs_per_round (rounds then begin again at its start)"
        )


def round_slice(number: int, records: int, config: AlignmentConfig) -> list[int]:
    """Indices into D_p (already in its seeded order) of round `number` (from 1): consecutive, wrapping around, each
    once at most: a round of more than all records takes all.

    With the default pairs_per_round, all rounds together make one epoch; their sizes differ by one at most.
    """
    if config.pairs_per_round is not None:
        start = (number - 1) * config.pairs_per_round
        return [(start + i) % records for i in range(min(config.pairs_per_round, records))]
    bounds = [records * i // config.rounds for i in range(config.rounds + 1)]
    return list(range(bounds[number - 1], bounds[number]))


def growing_round(totals: Sequence[int], config: AlignmentConfig) -> list[int]:
    """Indices of the last of the rounds that found `totals` records, where the corpus grows between rounds.

    What was added since the round before comes first, then what no round has used, then all from the start again.
    """
    used: set[int] = set()
    indices: list[int] = []
    before = 0
    for total in totals:
        size = min(config.pairs_per_round or -(-total // config.rounds), total)
        order = [*range(before, total), *range(before)]
        fresh = [index for index in order if index not in used]
        indices = (fresh + [index for index in range(total) if index in used])[:size]
        used |= set(indices)
        before = total
    return indices


def sample_seed(run_seed: int, number: int, record_id: str) -> int:
    """The sampling seed of one record in one round: 31 bits of a hash, stable under sharding and resuming."""
    digest = hashlib.sha256(f"{run_seed}:{number}:{record_id}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def decide(change: Change, config: AlignmentConfig) -> Decision:
    """Promote, unless the validation NLL has surely risen by more than `reject_above` nats a token; warn where it has
    surely risen, or may have risen by so much."""
    if change.surely_above(config.reject_above):
        return Decision("reject", f"{change}, a rise above {config.reject_above:g}", warning=True)
    if change.surely_above(0.0):
        return Decision("promote", f"{change}: fidelity fell, not surely by {config.reject_above:g}", warning=True)
    if change.nll > config.reject_above:
        reason = f"{change}: a rise above {config.reject_above:g}, but within its error; validate on more prompts"
        return Decision("promote", reason, warning=True)
    return Decision("promote", str(change))


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
        told = ", ".join(f"{change.nll:+.4f}{change.error}" for change in last)
        return (
            f"converged: validation NLL improved by less than {config.min_improvement:g} nats a token "
            f"for {config.patience} rounds ({told})"
        )
    return None
