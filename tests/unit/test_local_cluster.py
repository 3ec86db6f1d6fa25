"""The token that guards a local Ray, and telling a live cluster from a dead one."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from actors.cluster.http_options import HttpOptions
from actors.hosting import local_cluster
from actors.hosting.local_cluster import TAG, LocalCluster, running, state_file
from actors.hosting.serving import announce, started_at
from actors.hosting.status import Work, run_status
from proxykd.errors import ResourceError
from proxykd.runs.journal import Journal
from proxykd.runs.local_folder import local_folder
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import write_json
from services.cli.main import main
from tests.small_run import run_config


def process(tag, preparation, work):
    """A process of a Ray, at work: on a busy machine its tag can be read only a moment after Popen returns."""
    started = subprocess.Popen(
        [sys.executable, "-c", f"{preparation}; print(flush=True); {work}"],
        env={**os.environ, TAG: tag},
        stdout=subprocess.PIPE,
    )
    started.stdout.readline()
    started.stdout.close()
    return started


def test_one_token_a_user_that_only_the_user_reads(tmp_path, monkeypatch):
    monkeypatch.setenv("PROXYKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    local_cluster.use_token()
    path = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    token = path.read_text()
    assert len(token) == 64
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    local_cluster.use_token()
    assert path.read_text() == token
    assert os.listdir(path.parent) == ["ray-token"]


def test_stopping_waits_for_every_process_that_carries_the_tag(tmp_path):
    """A child that ignores SIGTERM is killed; one of another cluster is left alone."""
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)", "time.sleep(60)"
    mine, other = (process(tag, *stubborn) for tag in ("mine", "other"))
    try:
        cluster = LocalCluster("address", mine.pid, "mine")
        write_json(state_file(tmp_path), {"address": "address", "pid": mine.pid, "tag": "mine"})
        assert running(tmp_path) == cluster
        cluster.stop(timeout_s=1.0)
        assert mine.wait(timeout=10) < 0
        assert not cluster.alive
        assert running(tmp_path) is None
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_routes_never_share_a_port_with_another_ray(tmp_path):
    """Serve listens with SO_REUSEPORT: two local clusters at one port would each get half of the requests."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        with pytest.raises(ResourceError, match=rf"cannot listen on 127.0.0.1:{taken} \(Address already in use\)"):
            HttpOptions(port=taken).at_a_free_port()
        assert taken < HttpOptions(port=taken, or_next=True).at_a_free_port().port < taken + 100
    assert HttpOptions(port=taken).at_a_free_port().port == taken
    mine, held = HttpOptions(port=taken, or_next=True).claim()
    theirs, too = HttpOptions(port=taken, or_next=True).claim()  # both at once, before the Serve of either listens
    with held, too, socket.create_server((mine.host, mine.port), reuse_port=True) as serve:
        assert mine.port < theirs.port
        with socket.create_connection((mine.host, mine.port)), serve.accept()[0]:
            pass
    refused = CliRunner().invoke(main, ["dashboard", str(tmp_path), "--http-port", "70000"])
    assert refused.exit_code == 2
    assert "70000 is not in the range" in refused.output


def test_a_ray_whose_coordinator_has_a_last_act_is_seen_out(tmp_path):
    last_act = tmp_path / "last-act"
    code = "import pathlib, time", f"time.sleep(1); pathlib.Path({str(last_act)!r}).touch()"
    with process("mine", *code) as holder:
        LocalCluster("address", holder.pid, "mine").see_out()
        assert last_act.exists()


def test_a_run_that_is_served_is_not_at_work(tmp_path):
    """It was said to be finished and alive, and stopping it waited for ever."""
    run = RunDirectory.create(run_config("none", str(tmp_path)))
    Journal(run.journal).append("RUN_FINISHED", adapter=None)
    holder = process("mine", "import signal", "signal.pause()")
    try:
        cluster = LocalCluster("address", holder.pid, "mine")
        write_json(state_file(run.root), {"address": "address", "pid": holder.pid, "tag": "mine"})
        assert run_status(Work.at(run.root)).alive, "a coordinator's"
        announce(run.root, cluster, "http://127.0.0.1:8000")
        status = run_status(Work.at(run.root))
        assert (status.state, status.alive, status.served_at) == ("serving", False, "http://127.0.0.1:8000")
        refused = CliRunner().invoke(main, ["stop", str(run.root)])
        assert refused.exit_code != 0
        assert "is served at http://127.0.0.1:8000" in refused.output
        assert "--serving ends that" in refused.output
        mine = {"url": "u", "pid": holder.pid, "started": started_at(holder.pid), "tag": "mine"}
        write_json(local_folder(run.root) / "serving.json", mine)
        assert CliRunner().invoke(main, ["stop", str(run.root), "--serving"]).exit_code == 0
        assert holder.wait(timeout=10) == -signal.SIGTERM
        assert run_status(Work.at(run.root)).state == "finished"
        again = CliRunner().invoke(main, ["stop", str(run.root), "--serving"])
        assert "is not served on this machine" in again.output
    finally:
        holder.kill()
        holder.wait()


def test_a_ray_whose_terminal_was_killed_is_ended_too(tmp_path):
    run = RunDirectory.create(run_config("none", str(tmp_path)))
    Journal(run.journal).append("RUN_FINISHED", adapter=None)
    left, other = (process(tag, "import signal", "signal.pause()") for tag in ("left", "another's"))
    try:
        write_json(state_file(run.root), {"address": "address", "pid": left.pid, "tag": "left"})
        later = {"url": "u", "pid": other.pid, "tag": "left"}  # the number is another process's by now
        write_json(local_folder(run.root) / "serving.json", later)
        told = CliRunner().invoke(main, ["stop", str(run.root), "--serving"])
        assert told.exit_code == 0, told.output
        assert left.wait(timeout=10) == -signal.SIGTERM
        assert other.poll() is None
    finally:
        for one in (left, other):
            one.kill()
            one.wait()
