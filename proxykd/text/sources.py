"""Rows from the files of the field: JSONL (also .gz, .zst), Parquet, folders of them, and data sets of Hugging Face.

They are read in blocks, one after the other, so that a source of any size takes no more memory than a small one. What a
file is, its first bytes say, not its name. A file that cannot be read is a CorpusError, a row that cannot a BadRow.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
EMPTY = "empty line"
UNPACKED = 4
"""Bytes of text that a byte of a compressed file may hold, about."""
FORMS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"PAR1": "parquet"}
"""By what a file begins; any other holds lines."""
NEVER_EMPTY = (".gz", ".zst", ".parquet")
UNREADABLE = (OSError, EOFError, ValueError, zlib.error, pa.ArrowException)
"""What reading a file raises that is torn, or may not be read."""


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
        rows = _rows_of_table(self.content) if isinstance(self.content, pa.Table) else map(_row_of, self.content)
        for number, row in enumerate(rows, start=self.first):
            yield f"{self.label} {number}", row


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
        CorpusError: the file cannot be read: a Git-LFS pointer stands in its place, it is cut off or empty.
        IntegrityError: the file is not what its marker says.
        """
        if self.file is None:
            return _blocks_of_dataset(self.label, self.rows)
        if self.marked:
            verify_shard(self.file)
        form = form_of(self.file)
        return _blocks_of_parquet(self.label, self.file) if form == "parquet" else _lines(self.label, self.file, form)

    @property
    def size(self) -> int:
        """Bytes, of which `Block.read` is a share."""
        return int(self.rows.data.nbytes) if self.file is None else self.file.stat().st_size

    @property
    def text_bytes(self) -> int:
        """How much text it holds, about."""
        if self.file is None:
            return self.size
        if (form := form_of(self.file)) == "parquet":
            with _opened_parquet(self.file) as parquet:
                return _unpacked_bytes(parquet.metadata)
        return self.size * (1 if form == "lines" else UNPACKED)

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
    with _readable(f"{key} {path}"):
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


def require_readable(source: str | Path, key: str) -> None:
    """Reads the beginning of every file of a source, of which nothing is downloaded.

    Raises:
        CorpusError: there is no such thing, or one of its files cannot be read.
    """
    if not str(source).startswith(HUB):
        for part in parts_of(source, key):
            next(replace(part, marked=False).blocks(), None)


def parsed(raw: bytes | str) -> Any:
    """What a line, or a text within a row, holds as JSON.

    Raises:
        BadRow: it is not JSON, is nested too deeply, or holds half of a surrogate pair, which no file of text can.
    """
    try:
        text = raw.decode("utf-8-sig") if isinstance(raw, bytes) else raw
        value = json.loads(text)
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise BadRow(f"half of a surrogate pair ({error.object[error.start]!a}), which is no text") from None
    except RecursionError:
        raise BadRow("not JSON: nested too deeply") from None
    except ValueError as error:
        raise BadRow(f"not JSON: {error}") from None
    return value


def is_blank(row: Any) -> bool:
    """Whether a row is a BadRow for no more than a blank line."""
    return isinstance(row, BadRow) and str(row) == EMPTY


def _row_of(line: bytes) -> Any:
    try:
        return parsed(line) if line.strip() else BadRow(EMPTY)
    except BadRow as reason:
        return reason


def _rows_of_table(table: pa.Table) -> list[Any]:
    try:
        rows: list[Any] = table.to_pylist()
    except UNREADABLE as error:  # a text that is none, a date beyond Python's
        if len(table) == 1:
            return [BadRow(str(error))]
        rows = [row for i in range(len(table)) for row in _rows_of_table(table[i : i + 1])]
    return rows


def form_of(path: Path) -> str:
    """What a file holds: one of FORMS, or lines.

    Raises:
        CorpusError: only a Git-LFS pointer stands in its place, it may not be read, or is empty where it cannot be.
    """
    with _readable(path):
        if is_lfs_pointer(path):
            raise CorpusError(f"{path} is a Git-LFS pointer, not the file itself; fetch it with: git lfs pull")
        with path.open("rb") as file:
            first = file.read(max(map(len, FORMS)))
    if not first and path.suffix in NEVER_EMPTY:
        raise CorpusError(f"{path} is empty, which no {path.suffix} is; fetch it anew")
    return next((form for begins, form in FORMS.items() if first.startswith(begins)), "lines")


@contextmanager
def _readable(what: Path | str) -> Iterator[None]:
    try:
        yield
    except UNREADABLE as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise CorpusError(f"{what} cannot be read: {reason}; mend it, or fetch it anew") from None


def _lines(label: str, path: Path, form: str) -> Iterator[Block]:
    """Blank lines at the end are none."""
    first, lines, blank, held = 1, list[bytes](), list[bytes](), 0
    try:
        with path.open("rb") as opened, _unpacked(form, opened) as unpacked:
            for line in unpacked:
                if line.isspace():
                    blank.append(line)
                    continue
                lines += [*blank, line]
                blank.clear()
                held += len(line)
                if len(lines) >= BLOCK_ROWS or held >= BLOCK_BYTES:
                    yield Block(label, first, lines, opened.tell())
                    first, lines, held = first + len(lines), [], 0
            if lines:
                yield Block(label, first, lines, opened.tell())
    except UNREADABLE as error:
        how, line = "read" if form == "lines" else "unpacked", first + len(lines) + len(blank) - 1
        raise CorpusError(f"{path} cannot be {how} after line {line}: {error}; fetch it anew") from None


@contextmanager
def _unpacked(form: str, opened: IO[bytes]) -> Iterator[Any]:
    if form == "gzip":
        with gzip.open(opened) as lines:
            yield lines
    elif form == "zstd":
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

    with _readable(path), path.open("rb") as opened, pq.ParquetFile(opened, buffer_size=2**20) as file:
        yield file


def _blocks_of_dataset(label: str, rows: Any) -> Iterator[Block]:
    tables, size = rows.with_format("arrow"), int(rows.data.nbytes)
    for start in range(0, len(rows), BLOCK_ROWS):
        table = tables[start : start + BLOCK_ROWS]
        yield Block(label, start + 1, table, size * (start + len(table)) // len(rows))


def _parts_of_folder(folder: Path, key: str) -> list[Part]:
    if any((folder / name).exists() for name in SAVED_BY_DATASETS):
        return _parts_of_dataset(_saved(folder, key))
    collected = (folder / DATASET_FILE).exists()
    files = sorted((folder / RECORDS).glob("shard-*.parquet")) if collected else sorted(folder.iterdir())
    parts = []
    for file in files:
        hidden = file.name.startswith(".")  # macOS lays ._x.jsonl beside x.jsonl
        if hidden or not file.name.endswith(SUFFIXES) or file.is_dir():
            continue
        if collected and not file.with_suffix(".ok").exists():
            continue
        parts.append(Part(file.name, f"{file.name} line", file, marked=collected))
    if not parts:
        raise CorpusError(f"{key} {folder} holds none of {', '.join(f'*{suffix}' for suffix in SUFFIXES)} yet")
    return parts


def _saved(folder: Path, key: str) -> Any:
    import datasets

    try:
        return datasets.load_from_disk(str(folder))
    except Exception as error:  # whatever it raises of a folder that is torn
        raise CorpusError(f"{key} {folder} cannot be loaded as a saved data set: {error}; save it anew") from None


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
