"""A cluster of several Ray nodes on this machine, started as an operator would: ray start --head, ray start --address."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from types import TracebackType

import psutil

from actors.cluster.placement import POOL_LABEL
from actors.hosting.local_cluster import ENVIRONMENT
from tests.object_store import free_port

BIN = Path(sys.executable).parent
TAG = "PROXYKD_TEST_NODES"
PATIENCE_S = 120.0


class RayNodes:
    """The head has the pool `data`; more nodes come and go. Leaving the context ends every process of theirs."""

    def __init__(self) -> None:
        self._tag = uuid.uuid4().hex
        self._folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: a socket's path has 107 characters
        self.environment = {
            **ENVIRONMENT,
            **os.environ,
            TAG: self._tag,
            "PATH": f"{BIN}:{os.environ['PATH']}",
            # On one machine a node's death is known by its socket; the default waits for it as for a lost network.
            "RAY_health_check_failure_threshold": "3",
        }
        self.port, self.dashboard_port = free_port(), free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.dashboard = f"http://127.0.0.1:{self.dashboard_port}"

    def __enter__(self) -> RayNodes:
        head = ["--head", f"--port={self.port}", "--include-dashboard=true", f"--dashboard-port={self.dashboard_port}"]
        self._start("data", 6, *head, f"--temp-dir={self._folder / 'ray'}", f"--ray-client-server-port={free_port()}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        if kind is not None:  # what the drivers told, which a failed wait alone does not explain
            for log in sorted((self._folder / "ray").glob("session_2*/logs/job-driver-*.log")):
                print(f"--- {log.name}\n{log.read_text()[-6000:]}")
        shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, pool: str, cpus: int) -> None:
        self._start(pool, cpus, f"--address={self.address}")

    def lose(self, pool: str) -> None:
        """SIGKILL to the raylet of each node of the pool; what runs under it ends with it."""
        found = [p for p in self.processes("raylet/raylet") if pool_of(p) == pool]
        assert found
        for process in found:
            process.kill()

    def run(self, *command: str, cwd: Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """A command of an operator, on a machine that knows where the cluster is and nothing else."""
        environment = self.environment | {"RAY_API_SERVER_ADDRESS": self.dashboard}
        arguments = [str(BIN / command[0]), *command[1:]]
        return subprocess.run(
            arguments,
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )

    def processes(self, title: str = "") -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                mine = process.environ().get(TAG) == self._tag
                if mine and re.search(title, " ".join(process.cmdline())):
                    found.append(process)
        return found

    def _start(self, pool: str, cpus: int, *arguments: str) -> None:
        ports = [f"--{name}={free_port()}" for name in ("dashboard-agent-listen-port", "metrics-export-port")]
        command = [BIN / "ray", "start", *arguments, f"--num-cpus={cpus}", f"--labels={POOL_LABEL}={pool}", *ports]
        command += ["--disable-usage-stats", f"--object-store-memory={200 * 2**20}"]
        started = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=PATIENCE_S)
        assert started.returncode == 0, started.stdout + started.stderr


def pool_of(process: psutil.Process) -> str | None:
    """The pool of the node whose raylet this process is, or runs under."""
    for one in (process, *process.parents()):
        line = " ".join(one.cmdline())
        if "raylet/raylet" in line:
            return line.partition(f'"{POOL_LABEL}":')[2].strip().partition('"')[2].partition('"')[0] or None
    return None


def wait_for(condition, seconds: float, what: str):
    """The first true value of `condition`, within `seconds`."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.2)
    return found
