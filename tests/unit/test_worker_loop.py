"""A Train worker: its threads, and what it does with an error (a finding is stored, a refused write told, everything
else left to Ray)."""

from __future__ import annotations

import errno
import os
import time

import pytest
import torch

from actors.training.worker_loop import LoopCall, run_loop
from proxykd.errors import GateError
from proxykd.models.parallel import Workers
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import read_json
from proxykd.stages.stage import Result
from tests.small_run import run_config
from tests.stage_ranks import worker_of


class Loss(Result):
    nll: float


class Report:
    """Stands where the coordinator is."""

    def __init__(self):
        self.message = None

    def storage_refused(self, message):
        self.message = message

    def refusal(self):
        return self.message


@pytest.fixture
def run_stage(tmp_path):
    run = RunDirectory.create(run_config("none", str(tmp_path / "runs")))
    report, calls = Report(), []

    def run_stage(loop):
        def counted(worker, task):
            calls.append("looped")
            return loop()

        outcome = str(tmp_path / "outcome.json")
        run_loop(LoopCall(str(run.root), "warmup", counted, None, outcome, lambda: report))
        return kept()

    def kept():
        return read_json(tmp_path / "outcome.json") if (tmp_path / "outcome.json").exists() else None

    run_stage.outcome = kept
    return run, report, calls, run_stage


def test_a_result_and_a_finding_are_stored(run_stage):
    _, _, _, stage = run_stage
    inside = []

    def work():
        inside.append(time.monotonic())
        time.sleep(0.01)
        inside.append(time.monotonic())
        return Loss(nll=1.0)

    began = time.monotonic()
    outcome = stage(work)
    assert inside[1] - inside[0] <= outcome.pop("seconds") <= time.monotonic() - began
    assert outcome == {"result": {"nll": 1.0}}

    def broken():
        raise GateError("margins are not 0")

    assert stage(broken) == {"error": {"type": "GateError", "message": "margins are not 0"}}


@pytest.fixture
def second_of_two(monkeypatch):
    """This process as rank 1 of 2, the other of which sees what it sees."""
    monkeypatch.setattr(Workers, "current", lambda mode, device: Workers(1, 2, mode, device))
    monkeypatch.setattr(Workers, "max", lambda workers, tensor: tensor)


def test_a_finding_of_one_worker_is_stored_and_leaves_none_waiting_for_it(run_stage, second_of_two):
    _, _, _, stage = run_stage

    def broken():
        raise GateError("only here")

    with pytest.raises(GateError, match="only here"):
        stage(broken)
    assert stage.outcome() == {"error": {"type": "GateError", "message": "only here"}}


def test_all_workers_stop_as_soon_as_one_is_asked_to(run_stage, second_of_two, monkeypatch):
    """The file that asks may show on one machine first: no worker asks twice, or it alone would go on."""
    run, _, calls, stage = run_stage
    monkeypatch.setattr(Workers, "max", lambda workers, tensor: tensor + 1)
    assert stage(lambda: Loss(nll=1.0)) is None  # rank 0 writes for all
    assert not run.stop_request.exists()
    assert calls == []


def test_a_run_that_is_to_stop_begins_no_further_task(run_stage):
    run, _, calls, stage = run_stage
    run.stop_request.touch()
    assert stage(lambda: Loss(nll=1.0)) == {"error": {"type": "RunStoppedError", "message": "stopped, as asked"}}
    assert calls == []


def test_a_full_disk_is_told_once_and_not_tried_again(run_stage):
    run, report, calls, stage = run_stage

    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        stage(full)
    assert report.message == f"{run.root}: No space left on device; free space there, then resume the run"
    assert stage(full) is None
    assert calls == ["looped"]


def test_what_may_pass_is_left_to_ray_train(run_stage):
    _, report, _, stage = run_stage

    def flaky():
        raise ConnectionError("a worker was lost")

    with pytest.raises(ConnectionError):
        stage(flaky)
    assert report.message is None


def test_a_worker_takes_the_threads_that_it_is_given_or_its_share_of_the_cores(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(4))
    before = torch.get_num_threads()
    try:
        for name, resources, threads in (
            ("all", {}, 4),
            ("shared", {"trainer_workers": 2}, 2),
            ("named", {"trainer_threads": 1}, 1),
        ):
            run = RunDirectory.create(run_config("none", str(tmp_path / name), resources=resources))
            worker_of(run, "warmup", [])
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
