"""Which records of D_p a round takes."""

from __future__ import annotations

from collections.abc import Sequence

from proxykd.config import AlignmentConfig
from proxykd.errors import CorpusError


def require_rounds(records: int, slice_name: str, config: AlignmentConfig) -> None:
    """Refuses an alignment of which some round would have no record, before anything is trained. `slice_name` is D_p's.

    Raises:
        CorpusError: D_p has fewer records than there are rounds to share it.
    """
    if config.pairs_per_round is None and records < config.rounds:
        raise CorpusError(
            f"the {slice_name} slice has {records} records for alignment.rounds={config.rounds}, which share it: some "
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
