"""The order of a stage's rows: the corpus' own in the first epoch, shuffled anew in each later one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

WINDOW_ROWS = 4096
"""Rows that are shuffled among each other; they wait in Arrow, where a row with its labels takes tens of KB."""


def shuffled(
    tables: Iterable[pa.Table], seed: int, epoch: int, size: int, window: int = WINDOW_ROWS
) -> Iterator[pa.Table]:
    """The rows of `tables` in tables of `size`, the last one shorter: each `window` of them in an order that seed and
    epoch decide, the windows as they come. So every worker sees the same batches, and so does one that resumes.

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
