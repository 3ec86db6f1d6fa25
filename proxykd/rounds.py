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


def decide(before_nll: float, after_nll: float, config: AlignmentConfig) -> Decision:
    """Promote unless the paired validation NLL rose by more than `reject_above` nats a token; warn when it rose."""
    change = after_nll - before_nll
    text = f"validation NLL {before_nll:.4f} -> {after_nll:.4f} ({change:+.4f} nats a token)"
    if change > config.reject_above:
        return Decision("reject", f"{text}, a rise above {config.reject_above:g}", warning=True)
    if change > 0:
        return Decision("promote", f"{text}: fidelity fell, within {config.reject_above:g}", warning=True)
    return Decision("promote", text)


def stop_reason(nlls: Sequence[float], config: AlignmentConfig) -> str | None:
    """Why the alignment ends after the rounds so far, or None. `nlls` is the proxy's in force: warm-up first."""
    rounds = len(nlls) - 1
    if rounds >= config.rounds:
        return f"all {config.rounds} rounds done"
    if rounds < config.patience:
        return None
    gains = [nlls[i - 1] - nlls[i] for i in range(rounds - config.patience + 1, rounds + 1)]
    if all(gain < config.min_improvement for gain in gains):
        return (
            f"converged: validation NLL improved by less than {config.min_improvement:g} nats a token "
            f"for {config.patience} rounds"
        )
    return None
