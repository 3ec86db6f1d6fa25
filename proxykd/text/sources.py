"""Rows from the files of the field: JSONL (also .gz), Parquet, folders of them, and data sets of Hugging Face."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from proxykd.errors import CorpusError
from proxykd.runs.storage import is_lfs_pointer, location, verify_shard

HUB = "hf:"
DATASET_FILE = "dataset.json"
"""What makes a folder a data set of `proxykd collect` (proxykd/collection/dataset.py)."""
RECORDS = "records"
SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
SAVED_BY_DATASETS = ("dataset_info.json", "dataset_dict.json")


class BadRow(ValueError):
    """In a row's place: why it is none."""


def rows_of(source: str | Path, key: str) -> Iterator[tuple[str, Any]]:
    """(where, row) of a file, a folder, or hf:NAME[:SPLIT]; a BadRow in the place of what cannot be parsed.

    `key` is the setting that named the source, for the message.

    Raises:
        CorpusError: there is no such thing.
    """
    name = str(source)
    if name.startswith(HUB):
        yield from _from_hub(name.removeprefix(HUB), key)
        return
    path = location(name) if "://" in name else Path(name)
    if not path.exists():
        raise CorpusError(f"{key} {path} does not exist; set it to a file, a folder or {HUB}NAME")
    if path.is_dir():
        yield from _from_folder(path, key)
    else:
        for line, row in read_rows(path):
            yield f"line {line}", row


def read_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """(line, row) of one file.

    Raises:
        CorpusError: only a Git-LFS pointer stands in its place.
    """
    if is_lfs_pointer(path):
        raise CorpusError(f"{path} is a Git-LFS pointer, not the file itself; fetch it with: git lfs pull")
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        line = 0
        with path.open("rb") as opened, pq.ParquetFile(opened) as file:
            for batch in file.iter_batches(1024):
                for row in batch.to_pylist():
                    line += 1
                    yield line, row
        return
    with path.open("rb") as opened, gzip.open(opened) if path.suffix == ".gz" else opened as lines:
        for number, raw in enumerate(lines, start=1):
            try:
                yield number, json.loads(raw)
            except ValueError as error:
                reason = "empty line" if not raw.strip() else f"not JSON: {error}"
                yield number, BadRow(reason)


def _from_folder(folder: Path, key: str) -> Iterator[tuple[str, Any]]:
    if any((folder / name).exists() for name in SAVED_BY_DATASETS):
        import datasets

        yield from _parts_of(datasets.load_from_disk(str(folder)))
        return
    collected = (folder / DATASET_FILE).exists()
    files = sorted((folder / RECORDS).glob("shard-*.parquet")) if collected else sorted(folder.iterdir())
    found = False
    for file in files:
        if not file.name.endswith(SUFFIXES) or (collected and not file.with_suffix(".ok").exists()):
            continue
        if collected:
            verify_shard(file)
        found = True
        for line, row in read_rows(file):
            yield f"{file.name} line {line}", row
    if not found:
        raise CorpusError(f"{key} {folder} holds none of {', '.join(f'*{suffix}' for suffix in SUFFIXES)} yet")


def _from_hub(name: str, key: str) -> Iterator[tuple[str, Any]]:
    import datasets

    name, _, split = name.partition(":")
    try:
        found = datasets.load_dataset(name, split=split or None)
    except Exception as error:  # whatever the hub's client raises, the user named something that it cannot give
        raise CorpusError(f"{key} {HUB}{name} cannot be loaded: {error}") from None
    yield from _parts_of(found)


def _parts_of(found: Any) -> Iterator[tuple[str, Any]]:
    parts = found.items() if isinstance(found, dict) else [("", found)]
    for part, rows in parts:
        for number, row in enumerate(rows, start=1):
            yield f"{part} row {number}".strip(), row
