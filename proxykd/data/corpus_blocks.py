"""A block of a corpus' source as two files: its rows as token ids, and the index by which each of them finds its place.

    ingest/rows-000017.arrow    the rows that fit, of data/corpus_store.py's schema, by slice and order
    ingest/index-000017.arrow   every row that was read, in the source's order

Whoever makes a block knows nothing of the others: which rows repeat others, and where each goes, the index tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from proxykd.config import CorpusConfig
from proxykd.data.slices import training_order
from proxykd.errors import IntegrityError, TemplateError
from proxykd.runs.storage import is_remote, location, write_shard
from proxykd.text.chat import ChatFormat
from proxykd.text.corpus import Record, RowRead, beside_text, prompt_key, read_row, record_keys, slice_of
from proxykd.text.sources import Block
from proxykd.text.tokenising import TokenisedRecord, tokenise
from proxykd.text.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from proxykd.data.teacher_logprobs import Place, TokensByText

IDS = pa.list_(pa.int32())
TEACHER_TOP = pa.list_(pa.struct([("position", pa.int32()), ("ids", IDS), ("logps", pa.list_(pa.float32()))]))
"""The teacher's most likely tokens and their log-probs, where it gives them (proxykd/data/teacher_logprobs.py)."""
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt_ids", IDS),
        ("completion_ids", IDS),
        ("teacher_top", TEACHER_TOP),
        ("prompt", pa.string()),
        ("completion", pa.string()),
        ("prompt_key", pa.string()),
        ("beside", pa.string()),
    ]
)
"""`prompt` is the last message, `beside` all else of the conversation (text/corpus.py)."""
INDEX = pa.schema(
    [
        ("where", pa.string()),
        ("left_out", pa.string()),
        ("detail", pa.string()),
        ("thoughtful", pa.bool_()),
        ("told", pa.bool_()),
        ("id", pa.string()),
        ("said", pa.binary()),
        ("named", pa.binary()),
        ("slice", pa.string()),
        ("place", pa.binary()),
        ("prompt_place", pa.binary()),
        ("note", pa.string()),
        ("tokens", pa.int32()),
        ("row", pa.int32()),
    ]
)
"""`where`, `detail` and `id` are there for what is listed: bad lines, and records that the template refuses. `row` is
that of the rows' file, -1 for a record that did not fit; `place` and `prompt_place` order records and prompts."""
PLACE_BYTES = 16
"""Of a hash, by which records are ordered: equal ones do not occur."""
BATCH_ROWS = 32
"""Rows of a block's file that are read together."""


@dataclass(frozen=True)
class Piece:
    """A block in its place in the source."""

    number: int
    part: int
    read: int
    """Bytes of the source up to its end."""
    block: Block | None
    """None where its files are there."""


@dataclass(frozen=True)
class BlockWriter:
    """Makes a block's two files, in whichever process it is called."""

    folder: str
    tokenizer: str
    """The folder that has it, with its chat template."""
    corpus: CorpusConfig
    seed: int
    instead: tuple[tuple[str, str], ...] = ()
    """Slices that others take the records of."""

    def __call__(self, piece: Piece) -> Piece:
        """The piece without its block, when its files are there."""
        if piece.block is not None:
            found = [(where, read_row(row, self.corpus)) for where, row in piece.block.rows()]
            tokenised = [self._tokenised(read.record) for _, read in found]
            order = sorted((i for i, one in enumerate(tokenised) if one.record), key=lambda i: tokenised[i].order)
            placed = {i: row for row, i in enumerate(order)}
            facts = [_index_row(*one, tokenised[i], placed.get(i, -1)) for i, one in enumerate(found)]
            table = self._table([(found[i][1].record, tokenised[i].record) for i in order])
            _write(rows_file(self.folder, piece.number), table)
            _write(index_file(self.folder, piece.number), pa.Table.from_pylist(facts, schema=INDEX))
        return replace(piece, block=None)

    def _tokenised(self, record: Record | None) -> _Tokenised:
        if record is None:
            return _Tokenised()
        key = prompt_key(record.messages)
        name = slice_of(record.messages, self.corpus)
        name = dict(self.instead).get(name, name)
        place, prompt_place = (training_order(self.seed, one)[:PLACE_BYTES] for one in (record.id, key))
        found, note, refusal = None, None, ""
        try:
            found, note = tokenise(record, name, chat_of(self.tokenizer), self.corpus.max_length, self.corpus.overlong)
        except TemplateError as error:
            note, refusal = "template_refuses", str(error)
        return _Tokenised(found, name, place, prompt_place, note or "", refusal)

    def _table(self, rows: Sequence[tuple[Any, Any]]) -> pa.Table:
        columns = {
            "id": [record.id for record, _ in rows],
            "prompt_ids": [one.prompt_ids for _, one in rows],
            "completion_ids": [one.completion_ids for _, one in rows],
            "teacher_top": [self._teacher_top(record, len(one.completion_ids)) for record, one in rows],
            "prompt": [record.messages[-1]["content"] for record, _ in rows],
            "completion": [record.completion for record, _ in rows],
            "prompt_key": [prompt_key(record.messages) for record, _ in rows],
            "beside": [beside_text(record) for record, _ in rows],
        }
        return pa.table(columns, schema=SCHEMA)

    def _teacher_top(self, record: Record, tokens: int) -> list[Place] | None:
        if record.top_logprobs is None:
            return None
        return _tokens_by_text(self.tokenizer).places(record.completion, record.top_logprobs, tokens)


@dataclass(frozen=True)
class _Tokenised:
    """What became of a record; nothing, where a row gave none."""

    record: TokenisedRecord | None = None
    slice: str = ""
    place: bytes = b""
    prompt_place: bytes = b""
    note: str = ""
    refusal: str = ""

    @property
    def order(self) -> tuple[str, bytes]:
        return self.slice, self.place


def _index_row(where: str, read: RowRead, found: _Tokenised, row: int) -> dict[str, Any]:
    record = read.record
    if record is None:
        return {"where": where, "left_out": read.left_out, "detail": read.detail}
    said, named = record_keys(record)
    return {
        "left_out": "",
        "detail": found.refusal,
        "thoughtful": read.thoughtful,
        "told": record.top_logprobs is not None,
        "id": record.id if found.refusal else "",
        "said": said,
        "named": named,
        "slice": found.slice,
        "place": found.place,
        "prompt_place": found.prompt_place,
        "note": found.note,
        "tokens": len(found.record.completion_ids) if found.record else 0,
        "row": row,
    }


def rows_file(folder: str, number: int) -> Path:
    return location(folder) / f"rows-{number:06d}.arrow"


def index_file(folder: str, number: int) -> Path:
    return location(folder) / f"index-{number:06d}.arrow"


def read_index(folder: str, number: int) -> list[dict[str, Any]]:
    """What is known of every row of a block, in the source's order."""
    with _opened(index_file(folder, number)) as file:
        rows: list[dict[str, Any]] = pa.ipc.open_file(file).read_all().to_pylist()
    return rows


def gather(folder: str, blocks: np.ndarray, rows: np.ndarray) -> pa.Table:
    """The rows at these places (block and row of each), in this order. Reads no more of a block than it needs."""
    parts, at = [], np.empty(len(rows), np.int64)
    count = 0
    for number in np.unique(blocks):
        mine = np.flatnonzero(blocks == number)
        with _opened(rows_file(folder, int(number))) as file:
            reader = pa.ipc.open_file(file)
            batches = np.unique(rows[mine] // BATCH_ROWS)
            read = pa.Table.from_batches([reader.get_batch(int(i)) for i in batches])
            within = np.searchsorted(batches, rows[mine] // BATCH_ROWS) * BATCH_ROWS + rows[mine] % BATCH_ROWS
            parts.append(read.take(within))
        at[mine] = np.arange(count, count + len(mine))
        count += len(mine)
    return pa.concat_tables(parts).combine_chunks().take(at).combine_chunks()


@lru_cache(maxsize=2)
def chat_of(tokenizer: str) -> ChatFormat:
    """Read once a process."""
    return ChatFormat(load_tokenizer(tokenizer))


@lru_cache(maxsize=2)
def _tokens_by_text(tokenizer: str) -> TokensByText:
    from proxykd.data.teacher_logprobs import TokensByText  # brings torch

    return TokensByText(chat_of(tokenizer))


def _write(path: Path, table: pa.Table) -> None:
    options = pa.ipc.IpcWriteOptions(compression="lz4")

    def write(target: Path) -> None:
        with pa.OSFile(str(target), "wb") as file, pa.ipc.new_file(file, table.schema, options=options) as writer:
            writer.write_table(table, BATCH_ROWS)

    write_shard(path, write, {"records": table.num_rows})


def _opened(path: Path) -> Any:
    """A file on this machine is mapped, so that only what is needed of it is read.

    Raises:
        IntegrityError: it is gone.
    """
    try:
        if is_remote(path):
            remote: Any = path
            return remote.open("rb", cache_type="none")
        return pa.memory_map(str(path))
    except FileNotFoundError:
        raise IntegrityError(f"{path} is gone, though it was finished; resume the run to make it again") from None
