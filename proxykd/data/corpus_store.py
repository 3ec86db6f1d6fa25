"""The run's corpus on disk: split, ordered and tokenised once. corpus/<slice>/shard-00000.parquet with markers."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from proxykd.config import HELD_OUT, USES, RunConfig
from proxykd.data.corpus_blocks import SCHEMA, BlockWriter, chat_of
from proxykd.data.ingest import Here, Progress, Source, Spread, begin, indexed, write_slices
from proxykd.data.row_ranges import RowRange, paths_of, read_ranges
from proxykd.data.slices import require_training_records
from proxykd.errors import CorpusError
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import (
    delete,
    read_json,
    unfinished,
    write_json,
)
from proxykd.runs.table_shards import write_rows_as_shard
from proxykd.text.corpus import Reading, Row
from proxykd.text.tokenizer import tokenizer_hash


def _silent(done: float, total: float, unit: str) -> None:
    """Where nobody asks how far it is."""


def write_corpus(
    run: RunDirectory,
    config: RunConfig,
    source: Source,
    tokenizer: str | Path,
    spread: Spread | None = None,
    progress: Progress = _silent,
) -> dict[str, Any]:
    """Reads, splits, tokenises and writes every slice; returns and stores the counts. `tokenizer` is the folder that
    has it, with its chat template.

    Raises:
        CorpusError: nothing usable, or too much that is not; a slice would be empty, corpus.training_limit is beyond
            what there is, or alignment.teacher_kl has nothing to go by.
        StorageError: the disk has no room for it.
    """
    corpus, spread = config.corpus, spread or Here()
    begin(run, source, [run.corpus])
    writer = BlockWriter(str(run.ingest), str(tokenizer), corpus, config.seed)
    with indexed(run, config, source, writer, spread, progress) as (index, reading):
        require_teacher_logprobs(config, reading)
        if not corpus.prompts:  # answers that were paid for are used, though some prompts got none
            require_training_records(index.training, corpus)
        if corpus.training_limit is not None:
            index.draw(corpus.training_limit)
        facts = index.facts(corpus.slices)
        require_few_refused(facts["refused"], index.used(corpus.slices), config)
        dropped = Counter(reading.dropped) + Counter(facts["dropped"])
        value = {
            **facts,
            "dropped": {reason: count for reason, count in sorted(dropped.items()) if count},
            "beyond_limit": index.beyond_limit,
            "bad_lines": reading.bad_lines,
            "thoughts": reading.thoughts,
            "tokenizer": tokenizer_hash(chat_of(str(tokenizer)).tokenizer),
            "sources": source.names,
        }
        require_slices(config, facts, value["dropped"])
        write_slices(run, index, corpus.slices, "shard", corpus.shard_records, spread, progress)
    write_json(run.corpus / "manifest.json", value)
    delete(run.ingest)
    return value


def write_segment(
    run: RunDirectory, config: RunConfig, number: int, source: Source, tokenizer: str | Path, spread: Spread | None
) -> dict[str, Any]:
    """Segment `number` (from 1) of a corpus that grows: what may still be learned from; returns and stores the counts.

    Raises:
        CorpusError: a file of the source holds too many bad lines.
    """
    corpus, spread, prefix = config.corpus, spread or Here(), f"segment-{number:03d}"
    begin(run, source, [path for name in corpus.growing for path in (run.corpus / name).glob(f"{prefix}-*")])
    instead = ((corpus.slice_for("warmup"), corpus.slice_for("alignment")),)
    writer = BlockWriter(str(run.ingest), str(tokenizer), corpus, config.seed, instead)
    with indexed(run, config, source, writer, spread, _silent) as (index, reading):
        facts = index.facts(corpus.growing)
        held_out = reading.kept - index.used(corpus.growing)
        dropped = {**reading.dropped, **facts.pop("dropped"), "held_out": held_out}
        value = {
            "segment": number,
            "sources": source.names,
            **facts,
            "dropped": {reason: count for reason, count in sorted(dropped.items()) if count},
        }
        write_slices(run, index, corpus.growing, prefix, corpus.shard_records, spread, _silent)
    write_json(_segment(run, number), value)
    delete(run.ingest)
    return value


def require_teacher_logprobs(config: RunConfig, reading: Reading) -> None:
    """Raises:
    CorpusError: alignment.teacher_kl has nothing to go by.
    """
    if config.alignment.teacher_kl and not reading.told:
        raise CorpusError(
            "alignment.teacher_kl is set, but no record carries the teacher's log-probs; collect them with "
            "teacher.top_logprobs, or set alignment.teacher_kl=0"
        )


def require_slices(config: RunConfig, records: Mapping[str, int], dropped: Mapping[str, int]) -> None:
    """`records` are counted by slice.

    Raises:
        CorpusError: a slice that the run needs would be empty.
    """
    corpus = config.corpus
    uses = [use for use in USES if use != "alignment" or config.alignment.rounds]
    if empty := [name for name in (*HELD_OUT, *corpus.slices_for(*uses)) if not records[name]]:
        limit = corpus.training_limit
        within, raised = (f" within corpus.training_limit {limit}", "raise the limit, ") if limit else ("", "")
        raise CorpusError(
            f"{sum(records[name] for name in corpus.slices)} usable records{within} (dropped: "
            f"{dict(dropped) or 'none'}) leave the slice(s) {', '.join(empty)} empty; {raised}add records or enlarge "
            f"the shares in corpus.split"
        )


def require_few_refused(refused: Sequence[dict[str, str]], records: int, config: RunConfig) -> None:
    """Raises CorpusError where the chat template refuses more of the records than `corpus.max_bad_share`."""
    if len(refused) > config.corpus.max_bad_share * records:
        listed = "\n".join(f"  {one['id']}: {one['reason']}" for one in refused[:10])
        raise CorpusError(
            f"the chat template cannot render {len(refused)} of {records} records, above corpus.max_bad_share "
            f"{config.corpus.max_bad_share:g}; mend them, raise the share, or name another template with "
            f"proxy.chat_template:\n{listed}"
        )


def write_rows(directory: Path, rows: Iterable[Row], shard_records: int) -> list[Path]:
    """Rows of the corpus as shards of their own, of which one at a time is held; finished ones stand."""
    paths: list[Path] = []
    left = iter(rows)
    while shard := list(islice(left, shard_records)):
        paths.append(directory / f"shard-{len(paths):05d}.parquet")
        write_rows_shard(paths[-1], shard)
    return paths


def write_rows_shard(path: Path, rows: list[Row]) -> None:
    """Rows of the corpus as one shard; a finished one stands."""
    if unfinished(path):
        write_rows_as_shard(path, rows, SCHEMA)


def corpus_sha256(run: RunDirectory) -> str:
    """Of the checksums of all its shards, by their places."""
    shards = sorted(path.relative_to(run.corpus).as_posix() for path in run.corpus.glob("*/*.ok"))
    sums = (f"{name} {read_json(run.corpus / name)['sha256']}\n" for name in shards)
    return hashlib.sha256("".join(sums).encode()).hexdigest()


def manifest(run: RunDirectory, segments: int | None = None) -> dict[str, Any]:
    """The counts of the corpus, with those of its first `segments` segments (None: of all)."""
    value: dict[str, Any] = read_json(run.corpus / "manifest.json")
    for number in range(1, 1 + (committed_segments(run) if segments is None else segments)):
        added = read_json(_segment(run, number))
        for key in (*run.config().corpus.growing, "records", "truncated", "tokens"):
            value[key] += added[key]
        value["dropped"] = dict(sorted((Counter(value["dropped"]) + Counter(added["dropped"])).items()))
        value["refused"] += added["refused"]
        value["sources"] += added["sources"]
    return value


def committed_segments(run: RunDirectory) -> int:
    """How many segments the corpus has grown by. They have no gaps."""
    number = 0
    while _segment(run, number + 1).exists():
        number += 1
    return number


def _segment(run: RunDirectory, number: int) -> Path:
    return run.corpus / "segments" / f"{number:03d}.json"


def slice_ranges(run: RunDirectory, name: str, segments: int | None = None) -> list[RowRange]:
    """All rows of a slice, shard by shard, in order: those it began with, then those of its first `segments` segments
    (or all). By what was counted: a shard that is missing is missed where it is read."""
    counts = {"shard": manifest(run, segments=0)[name]}
    if name in run.config().corpus.growing:
        for number in range(1, 1 + (committed_segments(run) if segments is None else segments)):
            counts[f"segment-{number:03d}"] = read_json(_segment(run, number))[name]
    size, folder = run.config().corpus.shard_records, run.corpus / name
    return [
        RowRange(str(folder / f"{prefix}-{i:05d}.parquet"), 0, min(size, count - i * size))
        for prefix, count in counts.items()
        for i in range(-(-count // size))
    ]


def slice_shards(run: RunDirectory, name: str, segments: int | None = None) -> list[Path]:
    """The shards of a slice in order."""
    return paths_of(slice_ranges(run, name, segments))


def answer_shards(run: RunDirectory, adapter: str) -> list[Path]:
    """The shards of an adapter's answers to prompts that the teacher has not answered, in order."""
    return sorted(run.answers(adapter).glob("shard-*.parquet"))


def read_slice(run: RunDirectory, name: str, segments: int | None = None) -> list[Row]:
    """All rows of a slice, in order. For the held-out slices and record counts; training streams instead."""
    return read_ranges(slice_ranges(run, name, segments))
