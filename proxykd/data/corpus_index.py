"""Every record of a corpus in a few bytes, on disk: which repeat others, which are drawn, and the order of all.

An SQLite file holds it, so that what it takes of memory does not grow with the corpus. It is made of the blocks'
indices, in the source's order, and lives for one reading of a corpus.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from proxykd.config import HELD_OUT
from proxykd.text.corpus import Known, Reading

CACHE_KIB = 16384
LAST = b"\xff" * 32
"""After the place of every prompt."""
TABLES = """
CREATE TABLE records (
    slice INT, place BLOB, number INT, block INT, row INT, prompt_place BLOB,
    note TEXT, tokens INT, id TEXT, refusal TEXT,
    PRIMARY KEY (slice, place, number)
) WITHOUT ROWID;
CREATE TABLE prompts (place BLOB PRIMARY KEY, records INT) WITHOUT ROWID;
CREATE TABLE said (key BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE named (key BLOB PRIMARY KEY) WITHOUT ROWID;
"""
USED = "(slice < :held_out OR prompt_place <= :drawn)"


class CorpusIndex:
    """The records that are kept, and what becomes of each."""

    def __init__(self, path: Path, slices: Sequence[str]):
        """`slices` are all that a record may have, the held-out ones first."""
        self._slices = tuple(slices)
        assert self._slices[: len(HELD_OUT)] == HELD_OUT
        self._file = sqlite3.connect(path, isolation_level=None)
        # What is lost with the process is made again: nothing need reach the disk by itself.
        for pragma in ("journal_mode=OFF", "synchronous=OFF", f"cache_size=-{CACHE_KIB}"):
            self._file.execute(f"PRAGMA {pragma}")
        self._file.executescript(TABLES)
        self._known = Known(_Keys(self._file, "said"), _Keys(self._file, "named"))
        self._values: dict[str, Any] = {"held_out": len(HELD_OUT), "drawn": LAST}
        self._count = 0

    def close(self) -> None:
        self._file.close()

    def forget_known(self) -> None:
        """From here on a record repeats none of those before."""
        for name in ("said", "named"):
            self._file.execute(f"DELETE FROM {name}")

    def admit(self, block: int, rows: list[dict[str, Any]], reading: Reading, limit: int | None) -> bool:
        """Takes the rows of a block in, and counts them in `reading`. False once `limit` records are kept."""
        kept = []
        self._file.execute("BEGIN")
        for row in rows:
            if limit is not None and reading.kept >= limit:
                break
            reading.rows += 1
            reason = row["left_out"] or self._known.repeats(row["said"], row["named"])
            if reason:
                reading.leave_out(row["where"], reason, row["detail"])
                continue
            reading.keep(row["thoughtful"], row["told"])
            self._count += 1
            at = self._slices.index(row["slice"]), row["place"], self._count, block, row["row"], row["prompt_place"]
            kept.append((*at, row["note"], row["tokens"], row["id"], row["detail"]))
        self._file.executemany("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", kept)
        self._file.execute("COMMIT")
        return limit is None or reading.kept < limit

    def draw(self, limit: int) -> None:
        """Leaves out the training records beyond `limit`: prompt by prompt, in their order, for as long as a prompt's
        fit whole."""
        self._file.execute(
            "INSERT INTO prompts SELECT prompt_place, COUNT(*) FROM records WHERE slice >= :held_out GROUP BY 1",
            self._values,
        )
        drawn, total = b"", 0
        for place, records in self._file.execute("SELECT place, records FROM prompts ORDER BY place"):
            total += records
            if total > limit:
                break
            drawn = place
        self._values["drawn"] = drawn

    @property
    def training(self) -> int:
        """Records that are not held out, used or not."""
        return self._number("slice >= :held_out")

    @property
    def beyond_limit(self) -> int:
        return self._number(f"NOT {USED}")

    def used(self, names: Sequence[str]) -> int:
        """Records of these slices, those that did not fit among them."""
        return self._number(f"{USED} AND {self._of(names)}")

    def facts(self, names: Sequence[str]) -> dict[str, Any]:
        """The counts of what these slices hold, and of what was left out of them."""
        where = f"{USED} AND {self._of(names)}"
        sizes = {name: self._number(f"{where} AND {self._of([name])} AND row >= 0") for name in names}
        tokens = self._one(f"SELECT COALESCE(SUM(tokens), 0) FROM records WHERE {where}")
        notes = f"SELECT note, COUNT(*) FROM records WHERE {where} AND note != '' GROUP BY note ORDER BY MIN(number)"
        dropped = Counter(dict(self._file.execute(notes, self._values)))
        truncated = dropped.pop("truncated", 0)
        refused = f"SELECT id, refusal FROM records WHERE {where} AND refusal != '' ORDER BY number"
        shape = {"records": sum(sizes.values()), **sizes, "truncated": truncated, "tokens": tokens}
        listed = [{"id": one, "reason": reason} for one, reason in self._file.execute(refused, self._values)]
        return {**shape, "dropped": dict(dropped), "refused": listed}

    def in_order(self, name: str) -> Iterator[tuple[int, int]]:
        """Block and row of every record of a slice, in the slice's order."""
        where = f"{USED} AND {self._of([name])} AND row >= 0"
        yield from self._file.execute(
            f"SELECT block, row FROM records WHERE {where} ORDER BY slice, place, number", self._values
        )

    def _of(self, names: Sequence[str]) -> str:
        return f"slice IN ({', '.join(str(self._slices.index(name)) for name in names)})"

    def _number(self, where: str) -> int:
        return self._one(f"SELECT COUNT(*) FROM records WHERE {where}")

    def _one(self, query: str) -> int:
        [value] = self._file.execute(query, self._values).fetchone()
        return int(value)


class _Keys:
    """A set of hashes on disk."""

    def __init__(self, file: sqlite3.Connection, table: str):
        self._file = file
        self._find, self._insert = f"SELECT 1 FROM {table} WHERE key = ?", f"INSERT INTO {table} VALUES (?)"

    def __contains__(self, key: bytes) -> bool:
        return self._file.execute(self._find, (key,)).fetchone() is not None

    def add(self, key: bytes) -> None:
        self._file.execute(self._insert, (key,))
