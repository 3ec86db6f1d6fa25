"""A corpus that grows while its run goes on: what a data set adds becomes a segment, which rounds use from then on.

The held-out slices never change: added records that belong to them by their prompts are left out and counted, so that
fidelity before and after is measured on the same text. Those of the warm-up's slice, which is over, go to alignment;
with corpus.whole_text there is one training slice, which takes them all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from proxykd.collection.dataset import Dataset
from proxykd.config import HELD_OUT, RunConfig
from proxykd.data.corpus_store import committed_segments, manifest, write_segment_slice
from proxykd.runs.storage import RunDirectory, delete, write_json
from proxykd.text.chat import ChatFormat
from proxykd.text.corpus import Reading, read_corpus, slice_of

Facts = dict[str, Any]


def sources(config: RunConfig) -> list[str]:
    """The finished shards of the data set that the run follows."""
    return [path.name for path in Dataset(str(config.corpus.path)).finished()]


def read_sources(config: RunConfig, names: list[str]) -> Reading:
    """The records of some of its shards.

    Raises:
        CorpusError: one of them holds too many bad lines.
    """
    whole = Reading()
    for name in names:
        path = str(Dataset(str(config.corpus.path)).records / name)
        reading = read_corpus(config.corpus.model_copy(update={"path": path}), may_be_empty=True)
        whole.records += reading.records
        whole.dropped.update(reading.dropped)
        whole.bad_lines += reading.bad_lines
    return whole


def reading_of(config: RunConfig, may_be_empty: bool = False) -> tuple[Reading, list[str]]:
    """What a run reads at its beginning, and the shards it was made of where the run follows a data set.

    Raises:
        CorpusError: as read_corpus.
    """
    names = sources(config) if config.corpus.follow else []
    reading = read_sources(config, names) if config.corpus.follow else read_corpus(config.corpus, may_be_empty)
    if Dataset.is_one(config.corpus.path):
        reading.dropped.update(Dataset(str(config.corpus.path)).counts().dropped)
    return reading, names


def take_added(run: RunDirectory, config: RunConfig, chat: ChatFormat) -> Facts | None:
    """Makes a segment of what the data set has added since the last one; None where it has added nothing.

    Idempotent: a segment counts once its marker corpus/segments/NNN.json stands, and what a killed attempt left of one
    is written anew.
    """
    known = set(manifest(run)["sources"])
    added = [name for name in sources(config) if name not in known]
    if not added:
        return None
    number = committed_segments(run) + 1
    reading, corpus = read_sources(config, added), config.corpus
    instead = {corpus.slice_for("warmup"): corpus.slice_for("alignment")}
    slices = [slice_of(record.messages, corpus) for record in reading.records]
    taken = [(r, instead.get(s, s)) for r, s in zip(reading.records, slices, strict=True) if s not in HELD_OUT]
    for stale in _left_of(run, corpus.growing, number):
        delete(stale)
    facts = write_segment_slice(run, config, number, taken, chat)
    held_out = len(reading.records) - len(taken)
    dropped = {**reading.dropped, **facts.pop("dropped"), "held_out": held_out}
    segment = {
        "segment": number,
        "sources": added,
        **facts,
        "dropped": {reason: count for reason, count in sorted(dropped.items()) if count},
    }
    write_json(run.corpus / "segments" / f"{number:03d}.json", segment)
    return segment


def _left_of(run: RunDirectory, slices: tuple[str, ...], number: int) -> list[Path]:
    return [path for name in slices for path in (run.corpus / name).glob(f"segment-{number:03d}-*")]
