"""A corpus that grows while its run goes on: what a data set adds becomes a segment, which rounds use from then on.

The held-out slices never change: added records that belong to them by their prompts are left out and counted, so that
fidelity before and after is measured on the same text. Those of the warm-up's slice, which is over, go to alignment;
with corpus.whole_text there is one training slice, which takes them all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from proxykd.collection.dataset import Dataset
from proxykd.config import RunConfig
from proxykd.data.corpus_store import committed_segments, manifest, write_segment
from proxykd.data.ingest import Source, Spread
from proxykd.runs.run_directory import RunDirectory
from proxykd.text.corpus import Reading, Record, records_of

Facts = dict[str, Any]


def source_of(config: RunConfig) -> Source:
    """What a run's corpus is made of at its beginning."""
    corpus = config.corpus
    collected = Dataset.is_one(corpus.path)
    dropped = Dataset(str(corpus.path)).counts().dropped if collected else Counter[str]()
    source = _following(config, finished(config)) if corpus.follow else Source((str(corpus.path),), corpus.limit)
    return replace(source, dropped=dropped)


def finished(config: RunConfig) -> list[str]:
    """The finished shards of the data set that the run follows."""
    return [path.name for path in Dataset(str(config.corpus.path)).finished()]


def _following(config: RunConfig, names: list[str]) -> Source:
    dataset = Dataset(str(config.corpus.path))
    return Source(tuple(str(dataset.records / name) for name in names), follows=True)


def reading_of(config: RunConfig, may_be_empty: bool = False) -> Reading:
    """All that a run reads at its beginning at once, for a look at it.

    Raises:
        CorpusError: as records_of.
    """
    whole = Reading()
    whole.records = list(records_at_first(config, whole, may_be_empty))
    return whole


def records_at_first(config: RunConfig, whole: Reading, may_be_empty: bool = False) -> Iterator[Record]:
    """The records that a run reads at its beginning, one after the other; `whole` counts them.

    Raises:
        CorpusError: as records_of.
    """
    source = source_of(config)
    for path in source.paths:
        reading = Reading()
        yield from records_of(config.corpus.model_copy(update={"path": path}), reading, may_be_empty or source.follows)
        whole.add(reading)
    whole.dropped.update(source.dropped)


def take_added(
    run: RunDirectory, config: RunConfig, tokenizer: str | Path, spread: Spread | None = None
) -> Facts | None:
    """Makes a segment of what the data set has added since the last one; None where it has added nothing.

    Idempotent: a segment counts once its marker corpus/segments/NNN.json stands.
    """
    known = set(manifest(run)["sources"])
    added = [name for name in finished(config) if name not in known]
    if not added:
        return None
    return write_segment(run, config, committed_segments(run) + 1, _following(config, added), tokenizer, spread)
