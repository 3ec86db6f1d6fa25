"""The run directory and the journal, on a local disk and in an object store: atomic, checked, fenced."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from proxykd.config import validate_config
from proxykd.errors import ConfigError, IntegrityError, RunError, RunStoppedError, StaleEpochError
from proxykd.runs.journal import Journal, replay
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import (
    create_if_absent,
    delete,
    fetch,
    is_remote,
    location,
    publish_directory,
    read_json,
    refusal,
    refuses_now,
    shard_facts,
    unfinished,
    verify_directory,
    verify_shard,
    write_atomic,
    write_json,
    write_shard,
)

RAW = {"name": "t", "corpus": {"path": "c"}, "proxy": {"source": "p"}, "student": {"source": "s"}}


def make_run(store, **sections):
    return RunDirectory.create(validate_config(RAW | {"runs_dir": str(store)} | sections, "test"))


def names(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_only_one_of_many_creates(store):
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda i: create_if_absent(store / "x", str(i).encode()), range(32)))
    assert won.count(True) == 1
    assert (store / "x").read_text() == str(won.index(True))
    assert names(store) == ["x"]


def test_a_file_that_is_written_anew_can_be_read_at_any_time(store):
    path = store / "live.json"
    write_json(path, {"n": 0})
    with ThreadPoolExecutor(1) as writer:
        writing = [writer.submit(write_json, path, {"n": n, "long": "x" * n}) for n in range(60)]
        seen = []
        while not writing[-1].done():
            seen.append(read_json(path)["n"])
    assert [one.result() for one in writing] == [None] * 60
    assert seen == sorted(seen)


def test_a_failed_write_leaves_the_old_file_and_no_litter(store):
    path = store / "x"
    write_atomic(path, b"old")
    with pytest.raises(TypeError):
        write_atomic(path, {"not": "bytes"})  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert names(store) == ["x"]


def build(directory):
    (directory / "weights").write_bytes(b"1234")
    (directory / "deeper").mkdir()
    (directory / "deeper" / "more").write_bytes(b"5")
    return {"round": 1}


def test_published_directories_are_checked_against_their_manifest(store):
    target = store / "adapters" / "r01-abc"
    publish_directory(target, build)
    assert verify_directory(target)["round"] == 1
    assert list(RunDirectory.ready_directories(store / "adapters")) == [target]
    (target / "weights").write_bytes(b"1235")
    with pytest.raises(IntegrityError, match="not the file that its manifest names"):
        verify_directory(target)
    (target / "READY").unlink()
    with pytest.raises(IntegrityError, match="no READY marker"):
        verify_directory(target)
    assert list(RunDirectory.ready_directories(store / "adapters")) == []


def test_a_published_directory_is_had_as_local_files(store, tmp_path, monkeypatch):
    monkeypatch.setenv("PROXYKD_CACHE", str(tmp_path / "cache"))
    target = store / "models" / "proxy"
    publish_directory(target, build)
    local = fetch(target)
    assert not is_remote(local)
    assert (local / "weights").read_bytes() == b"1234"
    assert (local / "deeper" / "more").read_bytes() == b"5"
    assert verify_directory(local)["round"] == 1
    assert fetch(target) == local
    (target / "READY").unlink()
    if is_remote(target):
        with pytest.raises(IntegrityError, match="no READY marker"):
            fetch(target)


def test_a_torn_copy_of_a_published_directory_is_not_used(object_store, tmp_path, monkeypatch):
    from tests.object_store import new_bucket

    monkeypatch.setenv("PROXYKD_CACHE", str(tmp_path / "cache"))
    target = location(new_bucket()) / "r01"
    publish_directory(target, build)
    (target / "weights").write_bytes(b"12")
    with pytest.raises(IntegrityError, match="is not what its manifest names"):
        fetch(target)
    (target / "weights").write_bytes(b"1234")
    assert verify_directory(fetch(target))


def test_a_shard_is_finished_when_its_marker_stands(store):
    path = store / "pairs" / "shard-00000.parquet"
    assert unfinished(path)
    write_shard(path, lambda target: target.write_bytes(b"rows"), {"records": 2})
    assert verify_shard(path)["records"] == 2
    assert not unfinished(path)
    assert names(path.parent) == ["shard-00000.ok", "shard-00000.parquet"]


@pytest.mark.parametrize("torn", ["truncated shard", "truncated marker", "empty marker", "no marker", "no shard"])
def test_a_torn_shard_is_made_again(store, torn):
    path = store / "pairs" / "shard-00000.parquet"
    write_shard(path, lambda target: target.write_bytes(b"rows"), {"records": 2})
    marker = path.with_suffix(".ok")
    match torn:
        case "truncated shard":
            path.write_bytes(b"ro")
        case "truncated marker":
            marker.write_bytes(marker.read_bytes()[:20])
        case "empty marker":
            marker.write_bytes(b"")
        case "no marker":
            delete(marker)
        case "no shard":
            delete(path)
    assert unfinished(path)
    write_shard(path, lambda target: target.write_bytes(b"rows"), {"records": 2})
    assert not unfinished(path)


def test_a_write_onto_a_full_disk_leaves_no_marker(store):
    path = store / "pairs" / "shard-00000.parquet"

    def write(target):
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device", str(target))

    with pytest.raises(OSError, match="No space left"):
        write_shard(path, write, {})
    assert shard_facts(path) is None
    assert names(path.parent) == []


def test_a_build_that_fails_publishes_nothing(store):
    def fail(directory):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        publish_directory(store / "a", fail)
    assert names(store) == []


def test_what_a_killed_writer_left_half_written_is_swept(tmp_path):
    run = make_run(tmp_path)
    (run.adapters / ".r01-abc.tmp").mkdir(parents=True)
    (run.adapters / ".r01-abc.tmp" / "weights").write_bytes(b"12")
    (run.stages / ".warmup.json.123").parent.mkdir()
    (run.stages / ".warmup.json.123").write_bytes(b"{")
    (run.root / ".student.123").mkdir()
    (run.root / ".cluster.json.123").write_bytes(b"{")  # of a launcher that is at work
    write_atomic(run.stages / "models.json", b"{}")
    run.sweep()
    assert names(run.root) == [".cluster.json.123", "adapters", "config.json", "stages"]
    assert names(run.adapters) == []
    assert names(run.stages) == ["models.json"]


def test_a_run_directory_belongs_to_one_config(store):
    config = validate_config(RAW | {"runs_dir": str(store)}, "test")
    run = RunDirectory.create(config)
    assert RunDirectory.open(str(run.root)).config() == config
    more = make_run(store, resources={"trainer_workers": 2}, redis={"url": "redis://there:1"})
    assert more.config().resources.trainer_workers == 2
    held = read_json(run.root / "config.json")
    held["alignment"]["beta"] = 0.7
    (run.root / "config.json").write_text(json.dumps(held))
    with pytest.raises(RunError, match="belongs to another config"):
        RunDirectory.create(config)
    with pytest.raises(RunError, match="is no run directory"):
        RunDirectory.open(store / "nowhere")


def test_a_run_is_asked_to_stop_through_storage(store):
    run = make_run(store)
    run.go_on()
    write_atomic(run.stop_request, b"{}")
    with pytest.raises(RunStoppedError, match="as asked"):
        run.go_on()


def test_a_store_whose_conditional_put_nobody_has_tested_is_refused():
    with pytest.raises(ConfigError, match="not on gs://"):
        location("gs://bucket/runs")


def test_an_unwritable_runs_dir_is_said_plainly(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write the run directory"):
        make_run(tmp_path / "file")


def test_a_bucket_that_is_not_there_is_said_plainly(object_store):
    with pytest.raises(RunError, match="cannot write the run directory s3://no-such-bucket"):
        make_run("s3://no-such-bucket/runs")


def test_the_journal_replays_in_order_and_fences_a_stale_writer(store):
    first = Journal(store)
    first.append("A", n=1)
    first.check()
    second = Journal(store, host="b")
    assert second.epoch == first.epoch + 1
    with pytest.raises(StaleEpochError, match="another coordinator"):
        first.check()
    with pytest.raises(StaleEpochError, match="another coordinator"):
        first.append("B", n=2)
    second.append("C", n=3)
    assert [e["event"] for e in replay(store)] == ["EPOCH_CLAIMED", "A", "EPOCH_CLAIMED", "C"]
    assert replay(store)[2]["host"] == "b"


def test_a_look_at_the_journal_beside_its_writer_is_no_false_alarm(tmp_path):
    """The coordinator's heartbeat checks in another thread than the pipeline appends in."""
    journal = Journal(tmp_path)
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(lambda: [journal.append("A", n=n) for n in range(200)])
        while not writing.done():
            journal.check()
    assert [entry["n"] for entry in writing.result()] == list(range(200))
    assert replay(tmp_path)[1:] == writing.result()


def test_what_a_stale_epoch_wrote_later_is_ignored(store):
    Journal(store)
    second = Journal(store)
    second.append("GOOD")
    late = {"epoch": 1, "time": 0, "event": "STALE"}
    create_if_absent(store / "000004.json", json.dumps(late).encode())
    assert [e["event"] for e in replay(store)] == ["EPOCH_CLAIMED", "EPOCH_CLAIMED", "GOOD"]
    third = Journal(store)
    assert third.epoch == 3
    third.append("NEXT")
    assert replay(store)[-1]["event"] == "NEXT"


def test_racing_claims_get_different_epochs(store):
    with ThreadPoolExecutor(8) as pool:
        journals = list(pool.map(lambda _: Journal(store), range(8)))
    assert sorted(j.epoch for j in journals) == list(range(1, 9))


def test_a_torn_journal_entry_is_named(store):
    Journal(store).append("A")
    (store / "000002.json").write_text('{"a": ')
    with pytest.raises(IntegrityError, match=r"000002\.json is torn"):
        Journal(store)


def test_a_refused_write_is_known_through_every_library(tmp_path):
    """The kernel's own full device; torch says nothing of it but in its cause."""
    import torch

    from proxykd.runs.checkpoints import _write

    for write in (
        lambda: Path("/dev/full").write_bytes(b"x"),
        lambda: _write({"a": torch.zeros(9)}, Path("/dev/full")),
    ):
        with pytest.raises((OSError, RuntimeError)) as refused:
            write()
        assert refusal(refused.value, tmp_path) == (
            f"{tmp_path}: No space left on device; free space there, then resume the run"
        )
    read_only = RuntimeError("ray::task() failed with OSError: [Errno 30] Read-only file system: 'x'")
    assert "mount it writable" in refusal(read_only, tmp_path)
    assert refusal(ValueError("no words of a disk"), tmp_path) is None
    assert refuses_now(tmp_path) is None
    assert not list(tmp_path.iterdir())
