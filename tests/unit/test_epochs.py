"""The order of a stage's rows: the corpus' own in the first epoch, another in each later one, the same for everybody."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from unittest import mock

import pyarrow as pa
import pytest

from proxykd.data.corpus_store import read_slice
from proxykd.errors import IntegrityError
from proxykd.training.epochs import WINDOW_ROWS, Epochs, shuffled
from proxykd.training.loops.warm_up import WarmupTask, warm_up
from proxykd.training.trainer import Trainer
from tests.stage_ranks import make_run, worker_of


def rows_of(tables: Iterator[pa.Table]) -> list[list[int]]:
    return [table.column("row").to_pylist() for table in tables]


def cut(count: int, size: int) -> Iterator[pa.Table]:
    for start in range(0, count, size):
        rows = list(range(start, min(count, start + size)))
        yield pa.table({"row": rows, "ids": [[row] * (row % 3) for row in rows]})


@pytest.mark.parametrize("window", [1, 16, 64, 4096])
def test_every_row_comes_once_in_whole_batches(window):
    batches = rows_of(shuffled(cut(103, 16), seed=3, epoch=1, size=16, window=window))
    assert [len(batch) for batch in batches] == [16] * 6 + [7]
    assert sorted(row for batch in batches for row in batch) == list(range(103))


def test_rows_stay_within_their_window():
    batches = rows_of(shuffled(cut(96, 8), seed=3, epoch=1, size=8, window=35))
    windows = [sorted(row for batch in batches[start : start + 4] for row in batch) for start in (0, 4, 8)]
    assert windows == [list(range(32)), list(range(32, 64)), list(range(64, 96))]
    assert batches[0] != list(range(8))


def test_seed_and_epoch_decide_the_order_and_the_cut_of_the_stream_does_not():
    def order(seed: int, epoch: int, cut_at: int = 16) -> list[list[int]]:
        return rows_of(shuffled(cut(200, cut_at), seed, epoch, size=16, window=64))

    assert order(1, 1) == order(1, 1, cut_at=7)
    assert order(1, 1) != order(1, 2)
    assert order(1, 1) != order(2, 1)


def test_columns_stay_together():
    for table in shuffled(cut(50, 8), seed=0, epoch=1, size=8):
        assert all(ids == [row] * (row % 3) for row, ids in zip(*table.to_pydict().values(), strict=True))


class Streams:
    """Counts how often a stage's rows are asked for; `lost` are left out."""

    def __init__(self, records: int, lost: tuple[int, ...] = ()):
        self.asked, self.rows = 0, [row for row in range(records) if row not in lost]

    def __call__(self, size: int) -> Iterator[pa.Table]:
        self.asked += 1
        for start in range(0, len(self.rows), size):
            yield pa.table({"index": self.rows[start : start + size]})


@pytest.mark.parametrize(("records", "asked"), [(100, 1), (WINDOW_ROWS, 1), (WINDOW_ROWS + 1, 3)])
def test_what_fits_a_window_is_streamed_once(records, asked):
    streams = Streams(records)
    epochs = Epochs(streams, records, 16, seed=0)
    for epoch in range(3):
        rows = [row["index"] for batch in epochs.batches(epoch) for row in batch]
        assert sorted(rows) == list(range(records))
    assert streams.asked == asked


@pytest.mark.parametrize(("records", "lost"), [(100, (50,)), (100, (99,)), (WINDOW_ROWS + 20, (3,))])
def test_a_lost_row_is_refused(records, lost):
    with pytest.raises(IntegrityError, match="the stream"):
        list(Epochs(Streams(records, lost), records, 16, seed=0).batches(1))


class Stage:
    """A warm-up of three epochs of 10 rows in batches of 4, whose batches are kept as the places of their rows."""

    def __init__(self, tiny, folder):
        self.run = make_run(
            tiny, folder, warmup={"global_batch": 4, "epochs": 3, "keep": "last"}, resources={"checkpoint_seconds": 0.0}
        )
        self.rows = read_slice(self.run, "distillation")[:10]
        self.seen: list[list[int]] = []

    def train(self, die_at=None):
        step = Trainer.step

        def mortal(trainer, rows, *arguments):
            if trainer.steps == die_at:
                raise InterruptedError
            self.seen.append([row["index"] for row in rows])
            return step(trainer, rows, *arguments)

        with mock.patch.object(Trainer, "step", mortal):
            warm_up(worker_of(self.run, "warmup", self.rows), WarmupTask(len(self.rows)))
        return self.seen


def test_a_stage_shuffles_all_epochs_but_the_first(tiny, tmp_path):
    seen = Stage(tiny, tmp_path).train()
    assert [len(batch) for batch in seen] == [4, 4, 2] * 3
    first, second, third = ([*chain(*seen[start : start + 3])] for start in (0, 3, 6))
    assert first == list(range(10))
    assert sorted(second) == sorted(third) == first
    assert len({tuple(first), tuple(second), tuple(third)}) == 3


@pytest.mark.parametrize("die_at", [2, 4, 7])
def test_a_death_changes_no_order(tiny, tmp_path, die_at):
    whole, killed = (Stage(tiny, tmp_path / name) for name in ("whole", "killed"))
    with pytest.raises(InterruptedError):
        killed.train(die_at)
    began_again = len(killed.seen)
    killed.train()
    assert killed.seen[:began_again] == whole.train()[:began_again]
    resumed_at = len(whole.seen) - (len(killed.seen) - began_again)
    assert killed.seen[began_again:] == whole.seen[resumed_at:]
