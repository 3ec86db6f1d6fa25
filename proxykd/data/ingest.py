"""A corpus of any size from its source to its shards: block by block into an index on disk, and bucket by bucket out.

Reading parses, tokenises and writes each block by itself; the index then knows each record's slice and place, and a
bucket (the records of a few consecutive shards) is gathered from the blocks. Blocks and buckets are made by as many
processes as `Spread` has; what comes out does not depend on them. Nothing of the text passes through the caller.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from proxykd.config import RunConfig
from proxykd.data import corpus_blocks
from proxykd.data.corpus_blocks import BlockWriter, Piece, gather, index_file, read_index, rows_file
from proxykd.data.corpus_index import CorpusIndex
from proxykd.errors import StorageError
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import delete, is_remote, location, read_json, scratch, unfinished, write_json
from proxykd.runs.table_shards import write_table_shard
from proxykd.text import sources
from proxykd.text.corpus import Reading
from proxykd.text.sources import Part, parts_of

T = TypeVar("T")
R = TypeVar("R")
Progress = Callable[[float, float, str], None]
"""Takes what is done, of what total, and its unit. What it raises ends the work, which goes on from there."""
BUCKET_RECORDS = 4096
"""Records that are gathered together, about. No result depends on it."""
DISK_A_BYTE = 3.0
"""Bytes on disk at most, while a corpus is made, for each byte of its source: its blocks and its shards."""
MIB, GIB = 2**20, 2**30


class Spread(Protocol):
    """Where the work is done."""

    def items(self, make: Callable[[], Iterator[T]]) -> Iterable[T]:
        """What `make` yields, for `map` alone to take: it may be made, and stay, elsewhere."""

    def map(self, work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """What `work` returns of each item, in order."""


class Here:
    """In this process, one after the other."""

    def items(self, make: Callable[[], Iterator[T]]) -> Iterable[T]:
        return make()

    def map(self, work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        return map(work, items)


@dataclass(frozen=True)
class Source:
    """The text that a corpus, or a segment of it, is made of."""

    paths: tuple[str, ...]
    limit: int | None = None
    """Records that are kept at most."""
    follows: bool = False
    """Whether each path is a shard of a data set that grows: judged, and held against duplicates, by itself."""
    dropped: Counter[str] = field(default_factory=Counter)
    """What was put apart as it was collected."""

    @property
    def names(self) -> list[str]:
        """The shards of a data set that grows, for what comes later to know."""
        return [Path(path).name for path in self.paths] if self.follows else []

    def parts(self) -> list[Part]:
        """Raises:
        CorpusError: there is no such thing.
        """
        return [part for path in self.paths for part in parts_of(path, "corpus.path")]


@contextmanager
def indexed(
    run: RunDirectory, config: RunConfig, source: Source, writer: BlockWriter, spread: Spread, progress: Progress
) -> Iterator[tuple[CorpusIndex, Reading]]:
    """Reads a source in; blocks of an attempt before that are whole stand.

    Raises:
        CorpusError: no such file, an unknown format, nothing usable, or more bad lines than `max_bad_share`.
        StorageError: the disk has no room for it.
    """
    parts = source.parts()
    _require_room(run, parts)
    total = sum(part.size for part in parts) / MIB

    def read(piece: Piece) -> None:
        progress(piece.read / MIB, total, "MiB of text")

    with scratch(run.ingest) as folder:
        index = CorpusIndex(Path(folder) / "index.sqlite", config.corpus.slices)
        try:
            pieces = spread.map(writer, spread.items(partial(_pieces, source, writer.folder)))
            with closing(_told(pieces, read)) as told:
                reading = _take_in(index, told, config, source, writer.folder)
            yield index, reading
        finally:
            index.close()


def _told(pieces: Iterator[Piece], tell: Callable[[Piece], None]) -> Generator[Piece, None, None]:
    """The pieces; closed before its end, it ends the work on those that follow."""
    try:
        for piece in pieces:
            tell(piece)
            yield piece
    finally:
        if isinstance(pieces, Generator):
            pieces.close()


def _take_in(index: CorpusIndex, pieces: Iterator[Piece], config: RunConfig, source: Source, folder: str) -> Reading:
    whole, reading, part = Reading(), Reading(), 0
    for piece in pieces:
        if source.follows and piece.part != part:
            _conclude(reading, whole, source.paths[part], config, True)
            index.forget_known()
            reading, part = Reading(), piece.part
        if not index.admit(piece.number, read_index(folder, piece.number), reading, source.limit):
            break
    _conclude(reading, whole, source.paths[part], config, source.follows)
    whole.dropped.update(source.dropped)
    return whole


def _conclude(reading: Reading, whole: Reading, path: str, config: RunConfig, may_be_empty: bool) -> None:
    reading.judge(path, config.corpus, may_be_empty)
    whole.add(reading)


def begin(run: RunDirectory, source: Source, stale: Iterable[Path]) -> None:
    """Clears away what an earlier attempt has left (`stale` among it), unless it was made of this very source, in
    blocks like ours."""
    blocks = [sources.BLOCK_ROWS, sources.BLOCK_BYTES, corpus_blocks.BATCH_ROWS]
    versions = [blocks, *(part.version for part in source.parts())]
    noted = run.ingest / "source.json"
    if not noted.exists() or read_json(noted) != versions:
        for path in (run.ingest, *stale):
            delete(path)
        write_json(noted, versions)


def write_slices(
    run: RunDirectory,
    index: CorpusIndex,
    names: Sequence[str],
    prefix: str,
    shard_records: int,
    spread: Spread,
    progress: Progress,
) -> None:
    """Writes the slices' records as shards, in their order; finished ones stand."""
    total = sum(index.facts(names)[name] for name in names)
    writer, done = BucketWriter(str(run.ingest), str(run.corpus), prefix, shard_records), 0
    for records in spread.map(writer, _buckets(index, names, shard_records)):
        done += records
        progress(done, total, "records")


@dataclass(frozen=True)
class Bucket:
    """The records of some consecutive shards, by their places in the blocks."""

    slice: str
    first_shard: int
    blocks: np.ndarray
    rows: np.ndarray


@dataclass(frozen=True)
class BucketWriter:
    """Writes a bucket's shards, in whichever process it is called; finished ones stand."""

    folder: str
    corpus: str
    prefix: str
    shard_records: int

    def __call__(self, bucket: Bucket) -> int:
        """How many records it has."""
        directory, size = location(self.corpus) / bucket.slice, self.shard_records
        starts = range(0, len(bucket.rows), size)
        paths = [directory / f"{self.prefix}-{bucket.first_shard + i:05d}.parquet" for i in range(len(starts))]
        missing = [(path, start) for path, start in zip(paths, starts, strict=True) if unfinished(path)]
        if missing:
            table = gather(self.folder, bucket.blocks, bucket.rows)
            for path, start in missing:
                write_table_shard(path, table.slice(start, size).combine_chunks())
        return len(bucket.rows)


def _buckets(index: CorpusIndex, names: Sequence[str], shard_records: int) -> Iterator[Bucket]:
    shards = max(1, BUCKET_RECORDS // shard_records)
    for name in names:
        places, first = index.in_order(name), 0
        while found := list(islice(places, shards * shard_records)):
            blocks, rows = np.array(found, np.int32).T
            yield Bucket(name, first, blocks, rows)
            first += shards


def _pieces(source: Source, folder: str) -> Iterator[Piece]:
    number = before = 0
    for place, part in enumerate(source.parts()):
        for block in part.blocks():
            missing = unfinished(rows_file(folder, number)) or unfinished(index_file(folder, number))
            yield Piece(number, place, before + block.read, block if missing else None)
            number += 1
        before += part.size


def _require_room(run: RunDirectory, parts: Sequence[Part]) -> None:
    if is_remote(run.root):
        return
    text = sum(part.text_bytes for part in parts)
    held = sum(path.stat().st_size for path in run.ingest.rglob("*") if path.is_file())
    needed, free = DISK_A_BYTE * text - held, shutil.disk_usage(run.root).free
    if needed > free:
        raise StorageError(
            f"{run.root}: the corpus has {text / GIB:.1f} GiB of text and takes up to {needed / GIB:.1f} GiB of disk "
            f"while it is made; {free / GIB:.1f} GiB are free: free space there or set runs_dir, then resume the run"
        )
