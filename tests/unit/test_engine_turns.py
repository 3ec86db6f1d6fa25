"""One engine at a time: who wants the one that is up comes first, and nobody's is stopped under their hands."""

from __future__ import annotations

import threading
import time
from itertools import pairwise

import pytest

from actors.engine.engine_turns import EngineTurns


class Watched:
    """Turns that note what is started and stopped, and fail where two engines would be up."""

    def __init__(self):
        self.told = []
        self.turns = EngineTurns(lambda name: self.told.append(f"stop {name}"))
        self.at_work = 0

    def work(self, name, seconds=0.02):
        with self.turns.turn(name):
            self.at_work += 1
            assert self.at_work == 1
            self.told.append(name)
            time.sleep(seconds)
            self.at_work -= 1


def all_at_once(watched, names):
    threads = [threading.Thread(target=watched.work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()


def test_runs_that_want_the_engine_that_is_up_come_before_those_that_want_another():
    watched = Watched()
    first = threading.Thread(target=watched.work, args=("a", 0.3))
    first.start()
    time.sleep(0.1)
    all_at_once(watched, ["b", "a", "b", "a", "b"])
    assert watched.told == ["a", "a", "a", "stop a", "b", "b", "b"]


def test_every_run_gets_its_turn_with_any_number_of_engines():
    watched = Watched()
    all_at_once(watched, [f"{i % 4}" for i in range(24)])
    worked = [told for told in watched.told if "stop" not in told]
    assert sorted(worked) == sorted(f"{i % 4}" for i in range(24))
    for before, after in pairwise(watched.told):  # another's work begins only after the stop of the one that was up
        assert after in (before, f"stop {before}") or before.startswith("stop")


def test_one_that_failed_leaves_its_place():
    watched = Watched()
    with pytest.raises(ValueError, match="no answer"), watched.turns.turn("a"):
        raise ValueError("no answer")
    watched.work("b")
    assert watched.told == ["stop a", "b"]


def test_closing_ends_the_one_that_is_up_once():
    watched = Watched()
    watched.turns.close()
    watched.work("a")
    watched.turns.close()
    watched.turns.close()
    assert watched.told == ["a", "stop a"]


def test_an_engine_that_is_not_kept_is_stopped_and_one_that_does_not_stop_blocks_nobody():
    stopped = []

    def stop(name):
        stopped.append(name)
        if name == "stuck":
            raise OSError("its controller is away")

    turns = EngineTurns(stop)
    with turns.turn("teacher", keep=False):
        pass
    assert stopped == ["teacher"]
    with pytest.raises(OSError, match="its controller is away"), turns.turn("stuck", keep=False):
        pass
    with turns.turn("proxy"):
        pass
    turns.close()
    assert stopped == ["teacher", "stuck", "proxy"]
