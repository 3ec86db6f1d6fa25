"""A stage's rows, epoch by epoch: as the stream has them in the first one, shuffled anew in each later one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
import pyarrow as pa

from proxykd.errors import IntegrityError
from proxykd.text.corpus import Row
from proxykd.training.worker import Stream

WINDOW_ROWS = 2048
"""Rows that are shuffled among each other. They wait in Arrow, where a row with its labels takes tens of KB; a stage
that has no more streams them once."""


class Epochs:
    """Batches of `size` of the `records` rows that `stream` gives, each row once an epoch, the last batch shorter."""

    def __init__(self, stream: Stream, records: int, size: int, seed: int):
        self._stream, self._records, self._size, self._seed = stream, records, size, seed
        self._kept: list[pa.Table] | None = None

    def batches(self, epoch: int, skip: int = 0) -> Iterator[list[Row]]:
        """Those of an epoch, counted from 0, without the first `skip`: the same on every worker, and after a death.

        Raises:
            IntegrityError: the stream lost a row or gave them in another order.
        """
        tables = self._tables()
        if epoch:
            tables = shuffled(tables, self._seed, epoch, self._size)
        for table in islice(tables, skip, None):
            yield table.to_pylist()

    def _tables(self) -> Iterable[pa.Table]:
        if self._kept is not None:
            return self._kept
        if self._records > WINDOW_ROWS:
            return self._streamed()
        self._kept = list(self._streamed())
        return self._kept

    def _streamed(self) -> Iterator[pa.Table]:
        expected = 0
        for table in self._stream(self._size):
            indices = table.column("index").to_pylist()
            if indices != list(range(expected, expected + len(indices))):
                raise IntegrityError(f"the stream lost or reordered rows near {expected}; resume the run")
            expected += len(indices)
            yield table
        if expected != self._records:
            raise IntegrityError(f"the stream gave {expected} rows of {self._records}; resume the run")


def shuffled(
    tables: Iterable[pa.Table], seed: int, epoch: int, size: int, window: int = WINDOW_ROWS
) -> Iterator[pa.Table]:
    """The rows of `tables` in tables of `size`, the last one shorter: each `window` of them in an order that seed and
    epoch decide, the windows as they come.

    `window` is rounded down to whole batches, that no batch but the last is short.
    """
    window = max(1, window // size) * size
    chance = np.random.default_rng((seed, epoch))
    for part in _windows(tables, window):
        mixed = part.take(pa.array(chance.permutation(len(part))))
        for start in range(0, len(mixed), size):
            yield mixed.slice(start, size)


def _windows(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    waiting: list[pa.Table] = []
    count = 0
    for table in tables:
        waiting.append(table)
        count += len(table)
        while count >= rows:
            whole = pa.concat_tables(waiting)
            yield whole.slice(0, rows)
            waiting, count = [whole.slice(rows)], count - rows
    if count:
        yield pa.concat_tables(waiting)
