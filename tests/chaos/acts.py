"""What is done to a run at a point, and how long it takes to get over it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis

from actors.hosting.local_cluster import running, state_file
from tests.chaos.disks import Disk
from tests.chaos.runs import PATIENCE_S, POLL_S, AttackedRun, Point, proxykd
from tests.chaos.victims import pids
from tests.object_store import free_port
from tests.redis_servers import PASSWORD, OwnServer

Outcome = dict[str, Any]
Act = Callable[[AttackedRun, Point], Outcome]


def kill(victim: str) -> Act:
    """SIGKILL to all its processes at once. Over it: another one of it is there, and the run is beyond where it was."""

    def act(attacked: AttackedRun, point: Point) -> Outcome:
        before = set(pids(victim, attacked.root))
        assert before, f"no {victim} to kill at {point}"
        began = time.monotonic()
        for pid in before:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        position = attacked.position(point)
        resumed = False
        while not set(pids(victim, attacked.root)) - before and not attacked.got_further(point, position):
            assert time.monotonic() - began < PATIENCE_S, f"no other {victim} at {point}"
            if not attacked.alive and not attacked.finished:
                attacked.resume()
                resumed = True
            time.sleep(POLL_S)
        if point.share is not None:
            position = attacked.position(point)
        resumed = attacked.wait_until_further(point, position) or resumed
        return {"recovered": "one resume" if resumed else "by itself", "seconds": time.monotonic() - began}

    return act


def kill_the_driver(attacked: AttackedRun, point: Point) -> Outcome:
    """SIGKILL to a `proxykd resume` that looks on."""
    command = [str(Path(sys.executable).parent / "proxykd"), "resume", str(attacked.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        assert attacked.run.id in driver.stdout.readline()
        position = attacked.position(point)
        began = time.monotonic()
        driver.kill()
    resumed = attacked.wait_until_further(point, position)
    return {"recovered": "one resume" if resumed else "by itself", "seconds": time.monotonic() - began}


def start_a_second(attacked: AttackedRun, point: Point) -> Outcome:
    """Another coordinator on a Ray of its own, as from a second machine: the older must give way."""
    first = running(attacked.root)
    assert first is not None
    state_file(attacked.root).unlink()  # so that this machine does not know of the first
    again = proxykd("resume", str(attacked.root), "--detach", "--http-port", str(free_port()))
    assert again.returncode == 0, again.stderr
    began = time.monotonic()
    while first.alive:
        assert time.monotonic() - began < PATIENCE_S, f"the older coordinator did not give way at {point}"
        time.sleep(POLL_S)
    return {"recovered": "the older gave way", "seconds": time.monotonic() - began}


def refuse_writes(disk: Disk, fault: Callable[[], None], mend: Callable[[], None], said: str) -> Act:
    """The disk takes no more: the run ends, says why when it is asked, and after mending goes on where it was."""

    def act(attacked: AttackedRun, point: Point) -> Outcome:
        position = attacked.position(point)
        began = time.monotonic()
        fault()
        while attacked.alive:
            assert time.monotonic() - began < PATIENCE_S, f"the run goes on without a disk at {point}"
            time.sleep(POLL_S)
        ended = time.monotonic() - began
        refused = proxykd("resume", str(attacked.root))
        assert refused.returncode == 2, refused.stdout
        assert said in refused.stderr, refused.stderr
        mend()
        attacked.resume()
        attacked.wait_until_further(point, position)
        return {"recovered": f"ends in {ended:.0f} s; mended, one resume", "seconds": time.monotonic() - began}

    return act


def kill_redis(server: OwnServer) -> Act:
    """SIGKILL to a Redis of one's own, which comes back ten seconds later."""

    def act(attacked: AttackedRun, point: Point) -> Outcome:
        position = attacked.position(point)
        began = time.monotonic()
        server.kill()
        resumed = attacked.wait_until_further(point, position)
        outcome = {"recovered": "one resume" if resumed else "by itself", "seconds": time.monotonic() - began}
        time.sleep(10.0)
        server.restart()
        return outcome

    return act


def flush_redis(server: OwnServer) -> Act:
    """FLUSHALL in the middle of a run."""

    def act(attacked: AttackedRun, point: Point) -> Outcome:
        position = attacked.position(point)
        began = time.monotonic()
        with redis.Redis(port=server.port, password=PASSWORD) as client:
            assert client.keys()
            client.flushall()
        resumed = attacked.wait_until_further(point, position)
        return {"recovered": "one resume" if resumed else "by itself", "seconds": time.monotonic() - began}

    return act
