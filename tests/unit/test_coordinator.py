"""What a failed run says, and what the terminal makes of events and progress."""

from __future__ import annotations

import errno
import time
from dataclasses import replace

from actors.run.coordinator import failure
from actors.telemetry.event_files import read_events
from actors.telemetry.event_types import RunFailed, RunStarted, StageFinished
from actors.telemetry.events import EventLog
from actors.telemetry.live_state import LiveState, gives_signs_of_life, read_live
from proxykd.config import validate_config
from proxykd.errors import GateError
from proxykd.runs.run_directory import RunDirectory
from services.cli.terminal import event_line, progress_line

RAW = {"name": "t", "corpus": {"path": "c"}, "proxy": {"source": "p"}, "student": {"source": "s"}}


def make_run(tmp_path):
    return RunDirectory.create(validate_config(RAW | {"runs_dir": str(tmp_path)}, "test"))


def test_a_full_disk_says_where_and_what_to_do(tmp_path):
    run = make_run(tmp_path)
    failed = failure(OSError(errno.ENOSPC, "No space left on device", "/runs/x"), run)
    assert failed.message == f"{run.root}: No space left on device; free space there, then resume the run"
    assert failed.traceback is None


def test_a_finding_has_no_traceback_and_a_defect_has_one(tmp_path):
    run = make_run(tmp_path)
    assert failure(GateError("broken"), run) == RunFailed("GateError", "broken")
    assert "ZeroDivisionError" in failure(ZeroDivisionError("x"), run).traceback


def test_events_are_segments_that_a_second_writer_goes_on_with(tmp_path):
    run = make_run(tmp_path)
    started = RunStarted(run.id, epoch=1)
    finished = StageFinished("align", 2, seconds=3.0, busy_seconds=2.0, headline={"pairs": 7, "held_out_nll": 1.5})
    EventLog(run).emit(started)
    EventLog(run).emit(finished)
    events, last = read_events(run.events)
    assert [logged.event for logged in events] == [started, finished]
    assert read_events(run.events, after=1) == (events[1:], 2)
    assert last == 2
    assert event_line(events[1]) == "align 2 done in 3 s: pairs 7, held_out_nll 1.5000"
    in_a_study = replace(events[1], run="arm-s1")
    assert event_line(in_a_study) == "arm-s1: align 2 done in 2 s: pairs 7, held_out_nll 1.5000"


def test_a_coordinator_gives_a_sign_of_life_before_its_first_event(tmp_path):
    run = make_run(tmp_path)
    log = EventLog(run)
    assert not gives_signs_of_life(run)
    log.wake()
    assert gives_signs_of_life(run)
    log.stage("align", 1)
    log.progress(5, 10, "steps", {})
    log.close()
    assert not gives_signs_of_life(run)
    again = EventLog(run)
    again.wake()
    assert gives_signs_of_life(run)
    assert progress_line(read_live(run)) == "align 1"  # how far its predecessor came says nothing of this one
    again.stage("align", 1)
    assert again.stage_seconds >= read_live(run).spent > 0


def test_progress_says_stage_how_far_and_how_long_still(tmp_path):
    run = make_run(tmp_path)
    log = EventLog(run)
    log.stage("align", 1)
    log.step("sample")
    log.progress(16, 32, "pairs", {}, add=True)
    log.progress(8, 32, "pairs", {"nll": 1.25}, add=True)
    log.progress(32, 32, "pairs", {"nll": 1.25})
    live = read_live(run)
    assert (live.done, live.total, live.step) == (32, 32, "sample")
    line = progress_line(replace(live, done=24, step_started=time.time() - 60))
    assert line == "align 1 | 24/32 pairs | 0:20 left | nll 1.25"
    log.end_stage({"stage": "align", "round": 2, "seconds": 1.0, "result": {}})
    log.progress(32, 32, "pairs", {})
    assert read_live(run).stage is None
    log.close()
    assert read_live(run) == LiveState()
