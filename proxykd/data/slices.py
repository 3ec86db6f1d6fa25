"""Which slice each record of a corpus goes to, which are used where there is a limit, and in which order."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from proxykd.config import HELD_OUT, CorpusConfig
from proxykd.errors import CorpusError
from proxykd.text.corpus import Record, prompt_key, slice_of


@dataclass(frozen=True)
class Placed:
    """A corpus' records by slice."""

    records: list[tuple[Record, str]]
    """Those that are used, in the corpus' order, each with its slice."""
    training: int
    """Records that are not held out, used or not."""
    beyond_limit: int
    """Of these, those that corpus.training_limit leaves out."""


def place(records: Sequence[Record], corpus: CorpusConfig, seed: int, each: int = 1) -> Placed:
    """Gives every record its slice, and leaves out what is beyond `corpus.training_limit`.

    Training records are drawn prompt by prompt, in an order that the seed decides, for as long as a prompt's fit whole:
    those of a smaller limit are among those of a larger one. A prompt yet to be asked stands for `each` records.
    """
    placed = [(record, slice_of(record.messages, corpus)) for record in records]
    training = [record for record, name in placed if name not in HELD_OUT]
    if corpus.training_limit is None:
        return Placed(placed, len(training), 0)
    prompts = Counter(prompt_key(record.messages) for record in training)
    order = sorted(prompts, key=lambda key: training_order(seed, key))
    totals = accumulate(each * prompts[key] for key in order)
    drawn = {key for key, total in zip(order, totals, strict=True) if total <= corpus.training_limit}
    used = [(record, name) for record, name in placed if name in HELD_OUT or prompt_key(record.messages) in drawn]
    return Placed(used, len(training), len(placed) - len(used))


def require_training_records(there: int, corpus: CorpusConfig) -> None:
    """Raises:
    CorpusError: `corpus.training_limit` is beyond the training records that are there.
    """
    if corpus.training_limit is not None and corpus.training_limit > there:
        raise CorpusError(
            f"corpus.training_limit is {corpus.training_limit}, but {there} training records are there, beside those "
            f"that are held out; set corpus.training_limit={there} or less, or leave it out for all"
        )


def training_order(seed: int, key: str) -> bytes:
    """The key by which a slice's records are sorted by their ids, and prompts are drawn: shuffled by the seed, wherever
    in the corpus they stood."""
    return hashlib.sha256(f"{seed}:{key}".encode()).digest()
