"""The engine's merged checkpoints: a switch back merges nothing, room is kept, and no killed engine's files stay."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile

import pytest

from actors.engine import merged_checkpoints
from actors.engine.merged_checkpoints import KEPT, MergedCheckpoints
from actors.engine.scratch_folders import claim
from actors.hosting.local_cluster import LocalCluster
from proxykd.errors import IntegrityError
from proxykd.models.loading import initialise, merge_adapter
from proxykd.runs.run_directory import RunDirectory
from tests.small_run import make_adapter, run_config


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """In place of the machine's folder for temporary files."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    config = run_config(str(tiny), str(tmp_path_factory.mktemp("runs")))
    run = RunDirectory.create(config)
    initialise(config.proxy, run.models / "proxy")
    for number in range(KEPT + 1):
        make_adapter(run, number)
    return run


def weights(checkpoint):
    return (checkpoint / "model.safetensors").read_bytes()


def files(scratch):
    return sorted(path.name for path in scratch.glob("proxykd-merged-*/*"))


def test_the_last_few_are_ready_and_are_what_merging_gives(run, scratch, tmp_path):
    adapters = sorted(run.adapters.iterdir())
    kept = MergedCheckpoints(run.models / "proxy", "float32")
    made = {adapter: kept.of(adapter) for adapter in adapters[:KEPT]}
    merged = merge_adapter(run.models / "proxy", adapters[0], tmp_path / "merged", "float32")
    assert weights(made[adapters[0]]) == weights(merged)
    born = {adapter: (path / "model.safetensors").stat().st_ino for adapter, path in made.items()}
    assert kept.of(adapters[0]) == made[adapters[0]]
    kept.of(adapters[KEPT])  # in the place of the one that nobody has asked for since longest
    assert files(scratch) == sorted(path.name for path in (adapters[0], *adapters[2:]))
    assert (kept.of(adapters[0]) / "model.safetensors").stat().st_ino == born[adapters[0]]
    kept.drop(made[adapters[2]])
    assert weights(kept.of(adapters[2]))
    kept.close()
    kept.close()
    assert files(scratch) == []


@pytest.mark.parametrize("short_of", ["available_memory_gib", "free_gib"])
def test_where_there_is_no_room_for_two_more_none_is_kept(run, scratch, monkeypatch, short_of):
    adapters = sorted(run.adapters.iterdir())
    size = sum(path.stat().st_size for path in (run.models / "proxy").iterdir()) / 2**30
    monkeypatch.setattr(merged_checkpoints, short_of, lambda *_: 1.5 * size)
    kept = MergedCheckpoints(run.models / "proxy", "float32")
    for adapter in adapters[:3]:
        kept.of(adapter)
        assert files(scratch) == [adapter.name]


def test_an_adapter_that_is_not_what_its_manifest_says_leaves_nothing_behind(run, scratch, tmp_path):
    adapter = tmp_path / make_adapter(run, 90)
    (run.adapters / adapter.name).rename(adapter)
    with (adapter / "adapter_model.safetensors").open("ab") as file:
        file.write(b"x")
    kept = MergedCheckpoints(run.models / "proxy", "float32")
    for _ in range(2):
        with pytest.raises(IntegrityError):
            kept.of(adapter)
        assert files(scratch) == []


@pytest.mark.parametrize("end", [claim, LocalCluster("none", 0, "no-such-cluster").kill], ids=["next one", "cluster"])
def test_what_a_killed_engine_left_is_removed_and_a_living_ones_is_not(run, scratch, end):
    adapter = sorted(run.adapters.iterdir())[0]
    code = """
import sys
from pathlib import Path
from actors.engine.merged_checkpoints import MergedCheckpoints
kept = MergedCheckpoints(Path(sys.argv[1]), "float32")
print(kept.of(Path(sys.argv[2])), flush=True)
input()
"""
    command = [sys.executable, "-c", code, str(run.models / "proxy"), str(adapter)]
    engine = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(scratch)}
    )
    line = engine.stdout.readline().strip()
    end()
    assert files(scratch) == [adapter.name]
    engine.send_signal(signal.SIGKILL)
    engine.wait()
    assert line.endswith(adapter.name)
    end()
    assert files(scratch) == []
