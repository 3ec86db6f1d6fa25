"""The run directory and the journal: atomic, checked, fenced."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from proxykd.config import validate_config
from proxykd.errors import IntegrityError, RunError, StaleEpochError
from proxykd.journal import Journal, replay
from proxykd.storage import (
    RunDirectory,
    create_if_absent,
    publish_directory,
    read_json,
    verify_directory,
    write_atomic,
)

RAW = {"name": "t", "corpus": {"path": "c"}, "proxy": {"source": "p"}, "student": {"source": "s"}}


def test_only_one_of_many_creates(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda i: create_if_absent(tmp_path / "x", str(i).encode()), range(32)))
    assert won.count(True) == 1
    assert (tmp_path / "x").read_text() == str(won.index(True))
    assert os.listdir(tmp_path) == ["x"]


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "x"
    write_atomic(path, b"old")
    with pytest.raises(TypeError):
        write_atomic(path, "not bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_published_directories_are_checked_against_their_manifest(tmp_path):
    target = tmp_path / "adapters" / "r01-abc"

    def build(directory):
        (directory / "weights").write_bytes(b"1234")
        return {"round": 1}

    publish_directory(target, build)
    assert verify_directory(target)["round"] == 1
    (target / "weights").write_bytes(b"1235")
    with pytest.raises(IntegrityError, match="not the file that its manifest names"):
        verify_directory(target)
    (target / "READY").unlink()
    with pytest.raises(IntegrityError, match="no READY marker"):
        verify_directory(target)


def test_a_build_that_fails_publishes_nothing(tmp_path):
    def build(directory):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        publish_directory(tmp_path / "a", build)
    assert os.listdir(tmp_path) == []


def test_a_run_directory_belongs_to_one_config(tmp_path):
    config = validate_config(RAW | {"runs_dir": str(tmp_path)}, "test")
    run = RunDirectory.create(config)
    assert RunDirectory.open(run.root).config() == config
    more = validate_config(RAW | {"runs_dir": str(tmp_path), "resources": {"trainer_workers": 2}}, "test")
    assert RunDirectory.create(more).config().resources.trainer_workers == 2
    held = read_json(run.root / "config.json")
    held["alignment"]["beta"] = 0.7
    (run.root / "config.json").write_text(json.dumps(held))
    with pytest.raises(RunError, match="belongs to another config"):
        RunDirectory.create(config)
    with pytest.raises(RunError, match="is no run directory"):
        RunDirectory.open(tmp_path / "nowhere")


def test_an_unwritable_runs_dir_is_said_plainly(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write the run directory"):
        RunDirectory.create(validate_config(RAW | {"runs_dir": str(tmp_path / "file")}, "test"))


def test_the_journal_replays_in_order_and_fences_a_stale_writer(tmp_path):
    first = Journal(tmp_path)
    first.append("A", n=1)
    second = Journal(tmp_path)
    assert second.epoch == first.epoch + 1
    with pytest.raises(StaleEpochError, match="another coordinator"):
        first.append("B", n=2)
    second.append("C", n=3)
    assert [e["event"] for e in replay(tmp_path)] == ["EPOCH_CLAIMED", "A", "EPOCH_CLAIMED", "C"]


def test_what_a_stale_epoch_wrote_later_is_ignored(tmp_path):
    Journal(tmp_path)
    second = Journal(tmp_path)
    second.append("GOOD")
    late = {"epoch": 1, "time": 0, "event": "STALE"}
    create_if_absent(tmp_path / "000004.json", json.dumps(late).encode())
    assert [e["event"] for e in replay(tmp_path)] == ["EPOCH_CLAIMED", "EPOCH_CLAIMED", "GOOD"]
    third = Journal(tmp_path)
    assert third.epoch == 3
    third.append("NEXT")
    assert replay(tmp_path)[-1]["event"] == "NEXT"


def test_racing_claims_get_different_epochs(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        journals = list(pool.map(lambda _: Journal(tmp_path), range(8)))
    assert sorted(j.epoch for j in journals) == list(range(1, 9))


def test_a_torn_json_file_is_named(tmp_path):
    (tmp_path / "x.json").write_text('{"a": ')
    with pytest.raises(IntegrityError, match=r"x\.json is torn"):
        read_json(tmp_path / "x.json")
