"""The processes of a run, by the part that they play: real PIDs, to be killed with SIGKILL."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

from actors.hosting.local_cluster import TAG, LocalCluster, last_known

TITLES = {
    "coordinator": r"ray::Coordinator",
    "train worker": r"ray::RayTrainWorker",
    "train controller": r"ray::TrainController",
    "serve replica": r"ray::ServeReplica:.*-proxy:",
    "vllm engine": r"VLLM::EngineCore",
    "data task": r"ray::(feed_engine|Map|FlatMap|MapWorker)",
    "gcs": r"/gcs/gcs_server",
    "raylet": r"/raylet/raylet",
    "valkey": r"valkey-server",
    "machine": r"",
}


def pids(victim: str, run_root: Path) -> list[int]:
    """The victim's processes in the run's local Ray; none once the run has ended."""
    cluster = last_known(run_root)
    return [] if cluster is None else pids_within(cluster, TITLES[victim])


def pids_within(cluster: LocalCluster, title: str) -> list[int]:
    """The local Ray's processes whose title has a match of the pattern."""
    mark = f"{TAG}={cluster.tag}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            # Valkey writes its title over its environment; its keeper's says whose it is.
            marked = entry if "valkey-server" not in line else entry.parent / _parent(entry)
            if mark in (marked / "environ").read_bytes() and re.search(title, line):
                found.append(int(entry.name))
    return found


def _parent(entry: Path) -> str:
    return (entry / "stat").read_text().rpartition(")")[2].split()[1]


def kill(victim: str, run_root: Path) -> int:
    """SIGKILL to all of them at once; how many there were."""
    found = pids(victim, run_root)
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return len(found)


@contextlib.contextmanager
def nothing_left(roots: Path) -> Iterator[None]:
    """Whatever a failure leaves at work of the runs under `roots` dies with it: the tests after it share its cores."""
    try:
        yield
    finally:
        for root in roots.iterdir() if roots.exists() else ():
            kill("machine", root)
