"""Rows from the files of the field: JSONL (also .gz, .zst), Parquet, folders of them, and data sets of Hugging Face.

They are read in blocks, one after the other, so that a source of any size takes no more memory than a small one.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from proxykd.errors import CorpusError
from proxykd.runs.storage import is_lfs_pointer, location, verify_shard

HUB = "hf:"
DATASET_FILE = "dataset.json"
"""What makes a folder a data set of `proxykd collect` (proxykd/collection/dataset.py)."""
RECORDS = "records"
SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
SAVED_BY_DATASETS = ("dataset_info.json", "dataset_dict.json")
BLOCK_ROWS, BLOCK_BYTES = 2048, 2**22
"""What ends a block, whichever comes first. No result depends on it."""
UNPACKED = 4
"""Bytes of text that a byte of a compressed file may hold, about."""


class BadRow(ValueError):
    """In a row's place: why it is none."""


@dataclass(frozen=True)
class Block:
    """Consecutive rows of a source as they were read: lines of JSON, or a table."""

    label: str
    """Of its rows, before their number: `line`, `FILE line`, `PART row`."""
    first: int
    """The number of its first row, from 1."""
    content: Sequence[bytes] | pa.Table
    read: int
    """Bytes of its part of the source up to its end."""

    def rows(self) -> Iterator[tuple[str, Any]]:
        """(where, row) of each; a BadRow in the place of what cannot be parsed."""
        if isinstance(self.content, pa.Table):
            for number, row in enumerate(self.content.to_pylist(), start=self.first):
                yield f"{self.label} {number}", row
            return
        for number, raw in enumerate(self.content, start=self.first):
            where = f"{self.label} {number}"
            try:
                yield where, json.loads(raw)
            except ValueError as error:
                yield where, BadRow("empty line" if not raw.strip() else f"not JSON: {error}")


@dataclass(frozen=True)
class Part:
    """A file of a source, or `rows`: a part of a data set of Hugging Face."""

    name: str
    label: str
    file: Path | None = None
    rows: Any = None
    marked: bool = False
    """Whether the file has a marker that it is held to."""

    def blocks(self) -> Iterator[Block]:
        """Raises:
        CorpusError: a Git-LFS pointer stands in the file's place, or it is cut off.
        IntegrityError: the file is not what its marker says.
        """
        if self.file is None:
            return _blocks_of_dataset(self.label, self.rows)
        if self.marked:
            verify_shard(self.file)
        require_fetched(self.file)
        return (_blocks_of_parquet if self.file.suffix == ".parquet" else _blocks_of_lines)(self.label, self.file)

    @property
    def size(self) -> int:
        """Bytes, of which `Block.read` is a share."""
        return int(self.rows.data.nbytes) if self.file is None else self.file.stat().st_size

    @property
    def text_bytes(self) -> int:
        """How much text it holds, about."""
        if self.file is None:
            return self.size
        require_fetched(self.file)
        if self.file.suffix == ".parquet":
            with _opened_parquet(self.file) as parquet:
                return _unpacked_bytes(parquet.metadata)
        return self.size * (UNPACKED if self.file.suffix in (".gz", ".zst") else 1)

    @property
    def version(self) -> list[Any]:
        """What changes where its content does."""
        return [self.name, self.size, self.rows.num_rows if self.file is None else self.file.stat().st_mtime]


def parts_of(source: str | Path, key: str) -> list[Part]:
    """The parts of a file, a folder, or hf:NAME[:SPLIT], in order. `key` is the setting that named it, for the message.

    Raises:
        CorpusError: there is no such thing.
    """
    name = str(source)
    if name.startswith(HUB):
        return _parts_of_dataset(_from_hub(name.removeprefix(HUB), key))
    path = location(name) if "://" in name else Path(name)
    if not path.exists():
        raise CorpusError(f"{key} {path} does not exist; set it to a file, a folder or {HUB}NAME")
    return _parts_of_folder(path, key) if path.is_dir() else [Part(path.name, "line", path)]


def rows_of(source: str | Path, key: str) -> Iterator[tuple[str, Any]]:
    """(where, row) of all parts; a BadRow in the place of what cannot be parsed.

    Raises:
        CorpusError: there is no such thing.
    """
    for part in parts_of(source, key):
        for block in part.blocks():
            yield from block.rows()


def read_rows(path: Path) -> Iterator[Any]:
    """The rows of one file.

    Raises:
        CorpusError: only a Git-LFS pointer stands in its place.
    """
    for block in Part(path.name, "line", path).blocks():
        yield from (row for _, row in block.rows())


def require_fetched(path: Path) -> None:
    """Raises CorpusError where only a Git-LFS pointer stands in a file's place."""
    if is_lfs_pointer(path):
        raise CorpusError(f"{path} is a Git-LFS pointer, not the file itself; fetch it with: git lfs pull")


def _blocks_of_lines(label: str, path: Path) -> Iterator[Block]:
    first, lines, held = 1, list[bytes](), 0
    try:
        with path.open("rb") as opened, _unpacked(path, opened) as unpacked:
            for line in unpacked:
                lines.append(line)
                held += len(line)
                if len(lines) == BLOCK_ROWS or held >= BLOCK_BYTES:
                    yield Block(label, first, lines, opened.tell())
                    first, lines, held = first + len(lines), [], 0
            if lines:
                yield Block(label, first, lines, opened.tell())
    except (EOFError, gzip.BadGzipFile, zlib.error, pa.ArrowInvalid) as error:
        raise CorpusError(
            f"{path} cannot be unpacked after line {first + len(lines) - 1}: {error}; fetch it anew"
        ) from None


@contextmanager
def _unpacked(path: Path, opened: IO[bytes]) -> Iterator[Any]:
    if path.suffix == ".gz":
        with gzip.open(opened) as lines:
            yield lines
    elif path.suffix == ".zst":
        with pa.CompressedInputStream(pa.PythonFile(opened, "r"), "zstd") as stream:
            yield io.BufferedReader(stream, 2**20)
    else:
        yield opened


def _blocks_of_parquet(label: str, path: Path) -> Iterator[Block]:
    """Batch by batch: a file is often one row group."""
    whole, first = path.stat().st_size, 1
    with _opened_parquet(path) as file:
        total = file.metadata.num_rows
        width = _unpacked_bytes(file.metadata) // max(1, total)
        for batch in file.iter_batches(max(1, min(BLOCK_ROWS, BLOCK_BYTES // max(1, width)))):
            read = first - 1 + len(batch)
            yield Block(label, first, pa.Table.from_batches([batch]), whole * read // total)
            first = read + 1


def _unpacked_bytes(metadata: Any) -> int:
    return sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))


@contextmanager
def _opened_parquet(path: Path) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with path.open("rb") as opened, pq.ParquetFile(opened, buffer_size=2**20) as file:
        yield file


def _blocks_of_dataset(label: str, rows: Any) -> Iterator[Block]:
    tables, size = rows.with_format("arrow"), int(rows.data.nbytes)
    for start in range(0, len(rows), BLOCK_ROWS):
        table = tables[start : start + BLOCK_ROWS]
        yield Block(label, start + 1, table, size * (start + len(table)) // len(rows))


def _parts_of_folder(folder: Path, key: str) -> list[Part]:
    if any((folder / name).exists() for name in SAVED_BY_DATASETS):
        import datasets

        return _parts_of_dataset(datasets.load_from_disk(str(folder)))
    collected = (folder / DATASET_FILE).exists()
    files = sorted((folder / RECORDS).glob("shard-*.parquet")) if collected else sorted(folder.iterdir())
    parts = []
    for file in files:
        if not file.name.endswith(SUFFIXES) or (collected and not file.with_suffix(".ok").exists()):
            continue
        parts.append(Part(file.name, f"{file.name} line", file, marked=collected))
    if not parts:
        raise CorpusError(f"{key} {folder} holds none of {', '.join(f'*{suffix}' for suffix in SUFFIXES)} yet")
    return parts


def _from_hub(name: str, key: str) -> Any:
    import datasets

    name, _, split = name.partition(":")
    try:
        return datasets.load_dataset(name, split=split or None)
    except Exception as error:  # whatever the hub's client raises, the user named something that it cannot give
        raise CorpusError(f"{key} {HUB}{name} cannot be loaded: {error}") from None


def _parts_of_dataset(found: Any) -> list[Part]:
    parts = found.items() if isinstance(found, dict) else [("", found)]
    return [Part(name, f"{name} row".strip(), rows=rows) for name, rows in parts]
