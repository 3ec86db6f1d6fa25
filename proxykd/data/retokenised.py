"""The run's corpus in the tokens of a student that keeps its own tokenizer, beside the proxy's.

    retokenised/<slice>/shard-00000.parquet     rows as the corpus has them, of those that both sides can write

A row names the proxy's tokens of the same reply (`proxy_ids`, what its labels belong to), which of them is one to one
with each of the student's (`proxy_at`), the spans that are not (`chunks`, four numbers each), and, where there are
labels, the images of their K ids (text/vocabulary_map.py). Labels themselves stay in the proxy's tokens, once for
students of all families.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from proxykd.config import CorpusConfig
from proxykd.data.corpus_blocks import IDS, chat_of
from proxykd.data.corpus_blocks import SCHEMA as CORPUS
from proxykd.data.corpus_store import slice_ranges, slice_shards
from proxykd.data.label_shards import unpack_labels
from proxykd.data.row_ranges import RowRange, read_ranges, read_shard_rows, whole
from proxykd.data.soft_labels import LabelSource, require
from proxykd.errors import AlignmentError, CorpusError, TemplateError
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import finished_facts, location, read_table, unfinished, verify_shard
from proxykd.runs.table_shards import write_rows_as_shard
from proxykd.text.alignment import ByteReader
from proxykd.text.corpus import Row, record_of
from proxykd.text.token_bytes import TokenBytes
from proxykd.text.token_kinds import KINDS, kinds_of
from proxykd.text.tokenising import tokenise
from proxykd.text.vocabulary_map import NONE, VocabularyMap

SCHEMA = pa.schema(
    [
        *CORPUS,
        ("proxy_ids", IDS),
        ("proxy_at", IDS),
        ("chunks", IDS),
        ("images", pa.binary()),
    ]
)
"""`images` are 32-bit integers, K for each of the student's tokens; null without labels. `teacher_top` is always null:
the teacher's log-probs stand at the proxy's tokens."""


@dataclass(frozen=True)
class ShardJob:
    """A shard of the corpus, its labels where it has some, and what is to be written."""

    corpus: str
    labels: str | None
    target: str


@dataclass(frozen=True)
class Retokeniser:
    """Writes shards, in whichever process it is called; finished ones stand."""

    proxy: str
    student: str
    """The folders that have the tokenizers, each with its chat template."""
    corpus: CorpusConfig
    source: LabelSource | None
    """Of the labels."""

    def __call__(self, job: ShardJob) -> int:
        """How many records the shard of the corpus has."""
        rows = read_shard_rows(location(job.corpus))
        if unfinished(location(job.target)):
            labels = self._labels(job)
            counts: Counter[str] = Counter()
            made = [one for row in rows if (one := self._row(row, labels.get(row["id"]), counts)) is not None]
            write_rows_as_shard(location(job.target), made, SCHEMA, {"counts": dict(counts)})
        return len(rows)

    def _labels(self, job: ShardJob) -> Mapping[str, Row]:
        if job.labels is None:
            return {}
        assert self.source is not None
        path = location(job.labels)
        verify_shard(path)
        require(path, self.source)
        return {row["record_id"]: row for row in read_table(path).to_pylist()}

    def _row(self, row: Row, label: Row | None, counts: Counter[str]) -> Row | None:
        """A row in the student's tokens, counted; None for one that is dropped."""
        record, images = record_of(row), vocabularies(self.proxy, self.student)
        try:
            made, why = tokenise(record, "", images.student.chat, self.corpus.max_length, self.corpus.overlong)
            if made is None:
                counts[f"dropped {why}"] += 1
                return None
            ours = images.proxy.read(record, row["completion_ids"])
            theirs = images.student.read(record, made.completion_ids)
        except (TemplateError, AlignmentError) as error:
            counts["dropped template_refuses" if isinstance(error, TemplateError) else "dropped other_bytes"] += 1
            return None
        pairing = images.pair(ours, theirs)
        counts["truncated"] += why is not None
        counts["tokens"] += len(made.completion_ids)
        counts["proxy_tokens"] += len(row["completion_ids"])
        counts["one_to_one"] += int((pairing.proxy_at_N != NONE).sum())
        counts["in_chunks"] += int(pairing.chunks_S4[:, 3].sum())
        found: Row = {
            **row,
            "teacher_top": None,
            "prompt_ids": made.prompt_ids,
            "completion_ids": made.completion_ids,
            "proxy_ids": row["completion_ids"],
            "proxy_at": pairing.proxy_at_N,
            "chunks": pairing.chunks_S4.reshape(-1),
        }
        if label is not None:
            assert self.source is not None
            soft = unpack_labels({**row, **label}, self.source)["soft_labels"]
            images_NK = images.images(pairing, theirs, soft.top_ids_TK)
            found["images"] = images_NK.astype("<i4").tobytes()
            self._weigh(pairing.proxy_at_N, soft.top_ids_TK, soft.top_logps_TK, images_NK, counts)
        return found

    def _weigh(
        self, proxy_at_N: np.ndarray, ids_TK: np.ndarray, logps_TK: np.ndarray, images_NK: np.ndarray, counts: Any
    ) -> None:
        """Adds up the labels' mass at tokens that are one to one, by kind of the proxy's token, and what of it has an
        image."""
        places = np.flatnonzero(proxy_at_N != NONE)
        ids_nK, mass_nK = ids_TK[proxy_at_N[places]], np.exp(logps_TK[proxy_at_N[places]])
        kinds_nK, kept_nK = token_kinds(self.proxy)[ids_nK], images_NK[places] != NONE
        for number, name in enumerate(KINDS):
            counts[f"mass {name}"] += float(mass_nK[kinds_nK == number].sum())
            counts[f"mapped {name}"] += float(mass_nK[(kinds_nK == number) & kept_nK].sum())


@lru_cache(maxsize=2)
def vocabularies(proxy: str, student: str) -> VocabularyMap:
    """Of two folders' tokenizers; made once a process.

    Raises:
        ModelError: a tokenizer whose tokens' bytes are not known.
        AlignmentError: one that changes a text beyond its Unicode form.
    """
    return VocabularyMap(ByteReader(chat_of(proxy)), ByteReader(chat_of(student)))


@lru_cache(maxsize=2)
def token_kinds(tokenizer: str) -> np.ndarray:
    tokens = TokenBytes(chat_of(tokenizer).tokenizer)
    return kinds_of(tokens.pieces, tokens.control_V)


def jobs(run: RunDirectory, names: Iterable[str], labelled: Mapping[str, Path], segments: int | None) -> list[ShardJob]:
    """A job for every shard of these slices; `labelled` has the folder of a slice's labels."""
    found = []
    for name in dict.fromkeys(names):
        for path in slice_shards(run, name, segments):
            labels = str(labelled[name] / path.name) if name in labelled else None
            found.append(ShardJob(str(path), labels, str(_beside(run, name, path))))
    return found


def counted(targets: Sequence[ShardJob]) -> Counter[str]:
    """What was counted over finished shards, with their `records`.

    Raises:
        CorpusError: a slice has nothing left.
    """
    total: Counter[str] = Counter()
    by_slice: Counter[str] = Counter()
    for job in targets:
        path = location(job.target)
        facts = finished_facts(path)
        total.update(facts["counts"])
        by_slice[path.parent.name] += facts["records"]
    if empty := [name for name, records in by_slice.items() if not records]:
        why = {name.removeprefix("dropped "): count for name, count in total.items() if name.startswith("dropped ")}
        raise CorpusError(
            f"no record of {', '.join(empty)} can be written in the student's tokens (dropped: {why}); raise "
            f"corpus.max_length, or choose another student"
        )
    total["records"] = by_slice.total()
    return total


def student_shards(run: RunDirectory, name: str, segments: int | None = None) -> list[Path]:
    """The shards of a slice as the student reads it, in order."""
    shards = slice_shards(run, name, segments)
    if run.config().student.tokenizer == "proxy":
        return shards
    return [_beside(run, name, path) for path in shards]


def student_ranges(run: RunDirectory, name: str, segments: int | None = None) -> list[RowRange]:
    """All rows of a slice as the student reads it, in order."""
    if run.config().student.tokenizer == "proxy":
        return slice_ranges(run, name, segments)
    return whole(student_shards(run, name, segments))


def student_slice(run: RunDirectory, name: str) -> list[Row]:
    """All rows of a held-out slice as the student reads it."""
    return read_ranges(student_ranges(run, name))


def _beside(run: RunDirectory, name: str, path: Path) -> Path:
    return run.retokenised / name / path.name
