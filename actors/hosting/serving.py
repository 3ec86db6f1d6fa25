"""A finished run that `proxykd serve` has up on this machine: what it leaves of itself, for whoever asks or ends it."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from actors.hosting.local_cluster import LocalCluster, running
from proxykd.runs.local_folder import local_folder
from proxykd.runs.storage import read_json, write_json

POLL_S = 0.2


@dataclass(frozen=True)
class Serving:
    """Where it answers, and the process that holds it."""

    url: str
    pid: int
    tag: str
    """Of its local Ray."""
    started: int = 0
    """When that process did, by which it is told from a later one of the same number; 0 in older files."""


def announce(run_root: Path, cluster: LocalCluster, url: str) -> None:
    """Says that this process serves the run."""
    pid = os.getpid()
    write_json(_file(run_root), asdict(Serving(url, pid, cluster.tag, started_at(pid) or 0)))


def serving(run_root: Path) -> Serving | None:
    """Who serves the run, None where nobody does: a run that is at work has a local Ray of its own."""
    cluster, path = running(run_root), _file(run_root)
    if cluster is None or not path.exists():
        return None
    found = Serving(**read_json(path))
    return found if found.tag == cluster.tag else None


def end(run_root: Path, found: Serving) -> None:
    """Ends it, and returns when its Ray is gone: by the process that holds it, or, where that was killed, without."""
    if started_at(found.pid) == found.started:
        os.kill(found.pid, signal.SIGTERM)
        while serving(run_root) == found:
            time.sleep(POLL_S)
    elif (left := running(run_root)) is not None:
        left.stop()


def started_at(pid: int) -> int | None:
    """When a process began, in ticks since the machine did; None where it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return None


def _file(run_root: Path) -> Path:
    return local_folder(run_root) / "serving.json"
