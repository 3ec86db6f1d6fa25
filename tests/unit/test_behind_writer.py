"""A checkpoint is written while the steps go on, one at a time, and a write that failed is heard of."""

from __future__ import annotations

import threading

import pytest
import torch

from proxykd.training.behind_writer import BehindWriter
from tests.unit.test_training import LOSSES, make, rows


def test_the_steps_go_on_and_the_next_write_waits():
    writer, go, written = BehindWriter(behind=True), threading.Event(), []

    def slow():
        assert go.wait(30)
        written.append("first")

    writer.write(slow)
    assert written == []  # and this thread has gone on
    go.set()
    writer.write(lambda: written.append("second"))
    assert written[0] == "first"
    writer.finish()
    assert written == ["first", "second"]


def test_a_write_that_failed_ends_the_next_one_or_the_wait():
    def fails():
        raise OSError(28, "No space left on device")

    writer, written = BehindWriter(behind=True), []
    writer.write(fails)
    with pytest.raises(OSError, match="No space left"):
        writer.write(lambda: written.append("never"))
    writer.finish()
    assert written == []
    writer.write(fails)
    with pytest.raises(OSError, match="No space left"):
        writer.finish()


def test_on_a_cpu_whoever_writes_waits():
    writer, written = BehindWriter(behind=False), []
    writer.write(lambda: written.append(threading.current_thread()))
    assert written == [threading.current_thread()]


def test_adams_count_in_a_state_stays_as_it_was(tiny):
    trainer = make(tiny, 4)
    for seed in range(2):
        trainer.step(rows(seed=seed), LOSSES["sft"](rows(seed=seed)))
        if seed == 0:
            kept = trainer.state()["moments"][0]["step"]
    assert (kept.item(), trainer.state()["moments"][0]["step"].item()) == (1.0, 2.0)
    assert isinstance(kept, torch.Tensor)
