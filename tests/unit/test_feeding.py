"""The engine is never empty while rows are left: so many are with it, no more, and a slow one holds nobody back."""

from __future__ import annotations

import threading

import pytest

from actors.data.feeding import feed
from benchmarks.lengths import lengths
from proxykd.config import ResourceConfig
from proxykd.costs.occupancy import Window, engines_share

PATIENCE_S = 60.0
"""After which a test fails that would wait for ever."""


def shards_of(*sizes):
    """Shards by name, of rows that know their place in them all."""
    numbers = iter(range(sum(sizes)))
    return [(f"s{i}", [{"id": next(numbers)} for _ in range(size)]) for i, size in enumerate(sizes)]


class Engine:
    """Answers each row with its id, and counts what it is asked at once. A call with a slow row in it ends when all of the
    `total` rows have been asked for."""

    def __init__(self, total=0, slow=()):
        self.calls = self.rows = self.most_calls = self.most_rows = self.asked = 0
        self._slow, self._left, self._changed = set(slow), total, threading.Condition()

    def __call__(self, rows):
        with self._changed:
            self.calls, self.rows, self.asked = self.calls + 1, self.rows + len(rows), self.asked + 1
            self.most_calls, self.most_rows = max(self.most_calls, self.calls), max(self.most_rows, self.rows)
            self._left -= len(rows)
            self._changed.notify_all()
            if self._slow & {row["id"] for row in rows}:
                assert self._changed.wait_for(lambda: self._left == 0, PATIENCE_S), "a slow row holds others back"
            self.calls, self.rows = self.calls - 1, self.rows - len(rows)
        return [row["id"] for row in rows]


class Disk:
    def __init__(self):
        self.written = {}

    def __call__(self, name, rows, answers):
        assert name not in self.written
        assert [row["id"] for row in rows] == answers
        self.written[name] = answers


@pytest.mark.parametrize(
    ("rows", "calls", "size"), [(768, 96, 8), (48, 8, 6), (8, 8, 1), (3, 3, 1), (1, 1, 1), (23, 11, 2)]
)
def test_the_window_is_as_many_rows_as_there_may_be_in_small_calls(rows, calls, size):
    assert Window.of_rows(rows) == Window(calls, size)
    assert calls * size <= rows


def test_a_replica_has_three_times_what_it_works_at_or_what_the_config_says():
    assert ResourceConfig(engine_max_seqs=48).rows_in_flight == 144
    assert ResourceConfig(engine_max_seqs=48, engine_rows_in_flight=10).rows_in_flight == 10


def test_shards_of_any_size_are_whole_and_in_order():
    shards, disk = shards_of(7, 1, 0, 30, 4, 2), Disk()
    feed(shards, Engine(), disk, Window(3, 4))
    assert disk.written == {name: [row["id"] for row in rows] for name, rows in shards}


def test_as_many_calls_are_in_flight_as_there_may_be_and_no_more():
    """Every call waits until the window is full, and so there is a time when it is: across shards of one call each."""
    full = threading.Barrier(6)

    class Waiting(Engine):
        def __call__(self, rows):
            full.wait(PATIENCE_S)
            return super().__call__(rows)

    engine, disk = Waiting(), Disk()
    feed(shards_of(*[2] * 12), engine, disk, Window(6, 2))
    assert (len(disk.written), engine.asked) == (12, 12)
    assert engine.most_rows <= 12


def test_slow_rows_hold_no_other_back_and_their_shards_come_last():
    """Three rows of the first two shards end when all rows have been asked for. Where each shard is a call and two are
    made at once, a third shard never is."""
    shards, disk = shards_of(8, 8, 8, 3, 16, 8), Disk()
    feed(shards, Engine(total=51, slow=[0, 5, 8]), disk, Window(4, 2))
    assert set(list(disk.written)[-2:]) == {"s0", "s1"}
    assert {name: len(rows) for name, rows in shards} == {name: len(ids) for name, ids in disk.written.items()}


def test_rows_are_read_when_there_is_room_for_them():
    """No more shards are in memory than have rows in flight, and one."""
    taken, disk = [], Disk()

    def reading():
        for name, rows in shards_of(*[4] * 20):
            taken.append(name)
            assert len(taken) - len(disk.written) <= 4
            yield name, rows

    feed(reading(), Engine(), disk, Window(2, 4))
    assert len(disk.written) == 20


@pytest.mark.parametrize("fails", ["ask", "write"])
def test_an_error_arrives_and_no_call_is_begun_after_it(fails):
    engine, disk = Engine(), Disk()

    def ask(rows):
        if fails == "ask" and rows[0]["id"] >= 4:
            raise ValueError("the engine refuses")
        return engine(rows)

    def write(name, rows, answers):
        if fails == "write" and name == "s1":
            raise ValueError("the disk refuses")
        disk(name, rows, answers)

    with pytest.raises(ValueError, match="refuses"):
        feed(shards_of(*[4] * 500), ask, write, Window(1, 4))
    assert list(disk.written) == ["s0"]
    assert engine.asked <= 2


@pytest.mark.parametrize("places", [4, 16, 64, 256])
def test_no_place_is_empty_while_rows_of_real_lengths_are_left(places):
    """As busy as with every row in flight at once, but for a hundredth; calls of a shard feed two replicas at most."""
    rows = [rejected for *_, rejected in lengths(2048)]
    window = Window.of_rows(ResourceConfig(engine_max_seqs=places).rows_in_flight)
    at_best = engines_share(rows, Window(2048, 1), 1, places)
    assert engines_share(rows, window, 1, places) > at_best - 0.01
    four = engines_share(rows, Window(4 * window.calls, window.rows_a_call), 4, places)
    assert four > 1.5 * engines_share(rows, Window(2, 512), 4, places)


def test_the_simulated_engine_counts_steps_as_they_are():
    """Two places, rows of 3, 1, 1 and 1 steps: one at a time 6 steps, all at once 3."""
    assert engines_share([3, 1, 1, 1], Window(1, 1), 1, 2) == 6 / (2 * 6)
    assert engines_share([3, 1, 1, 1], Window(4, 1), 1, 2) == 6 / (2 * 3)
    assert engines_share([3, 1, 1, 1], Window(1, 2), 1, 2) == 6 / (2 * 4)
    assert engines_share([3, 1, 1, 1], Window(4, 1), 2, 1) == 6 / (2 * 4)
