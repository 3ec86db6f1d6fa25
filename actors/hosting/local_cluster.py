"""Ray on this machine, in a process group of its own, so that a run outlives the terminal that started it.

`python -m actors.hosting.local_cluster STATE CPUS` is the process that holds it; SIGTERM to it ends everything.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from actors.cluster.launch import Launch
from actors.engine.scratch_folders import remove_left
from proxykd.errors import ResourceError
from proxykd.runs.local_folder import local_folder
from proxykd.runs.storage import cache_folder, read_json, write_json

START_TIMEOUT_S = 120.0
KILL_TIMEOUT_S = 10.0
WATCH_S = 1.0
TAG = "PROXYKD_CLUSTER"
ENVIRONMENT = {
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    # A process a stage that would watch for a cloud taking the machine away.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # How long after a worker's end its stage ends.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Idle OpenMP threads of one process must not spin on the cores that another one needs.
    "KMP_BLOCKTIME": "0",
}


@dataclass(frozen=True)
class LocalCluster:
    """A running local Ray: its address for `ray.init`, and the process that holds it."""

    address: str
    pid: int
    tag: str

    @property
    def alive(self) -> bool:
        try:
            # A zombie has exited; only its parent has not read its status yet.
            # Its tag too: after a reboot the number may be another process's. A zombie has an empty environment.
            return f"{TAG}={self.tag}".encode() in Path(f"/proc/{self.pid}/environ").read_bytes()
        except OSError:  # gone, or another user's
            return False

    def see_out(self, patience_s: float = 60.0) -> None:
        """Returns when no process is left of a Ray whose coordinator has said its last word: its last act, which may
        have trackers to tell, ends Ray too."""
        deadline = time.monotonic() + patience_s
        while self.alive and time.monotonic() < deadline:
            time.sleep(0.1)
        self.stop()

    def stop(self, timeout_s: float = 60.0) -> None:
        """Ends Ray and everything on it, and returns when no process is left; what will not end is killed."""
        if self.alive:
            os.kill(self.pid, signal.SIGTERM)
            deadline = time.monotonic() + timeout_s
            while self._processes() and time.monotonic() < deadline:
                time.sleep(0.2)
        self.kill()

    def kill(self) -> None:
        """Ends what is left without asking, and returns when it is gone."""
        deadline = time.monotonic() + KILL_TIMEOUT_S
        while (left := set(self._processes()) - {os.getpid()}) and time.monotonic() < deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        remove_left()  # what its engines had in the folder for temporary files

    def _processes(self) -> list[int]:
        """Every process of this cluster, engines included: all inherit its tag. Zombies have an empty environment."""
        tag = f"{TAG}={self.tag}".encode()
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # ended meanwhile, or another user's
                if tag in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
        return found


def state_file(run_root: Path) -> Path:
    return local_folder(run_root) / "cluster.json"


def running(run_root: Path) -> LocalCluster | None:
    """Returns the local cluster that holds this run, None where it is not alive."""
    cluster = last_known(run_root)
    return cluster if cluster is not None and cluster.alive else None


def last_known(run_root: Path) -> LocalCluster | None:
    path = state_file(run_root)
    return LocalCluster(**read_json(path)) if path.exists() else None


def use_token() -> None:
    """Sets this process's Ray token: one a user, in a file that only the user reads.

    Call it before `import ray`, which reads the mode on import.
    """
    path = cache_folder() / "ray-token"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        with os.fdopen(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        with contextlib.suppress(FileExistsError):  # another process was faster: its token stands
            os.link(staged, path)
        staged.unlink()
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)}


def start(run_root: Path, logical_cpus: int, launch: Launch | None = None) -> LocalCluster:
    """Starts Ray with token authentication and `logical_cpus` announced, logging to RUN/logs/cluster.log.

    `launch` starts a run's coordinator too, its routes at a free port. The process that holds Ray does it: a
    coordinator belongs to the job that started it, and Ray ends every worker of a job that has exited as soon as it is
    idle.

    Raises:
        ResourceError: the port of the routes is taken; or Ray did not come up, and its log says why.
    """
    if (dead := last_known(run_root)) is not None:
        dead.kill()  # what its Ray left running when it was killed
    claim = None
    if launch is not None:
        http, claim = launch.http.claim()
        launch = replace(launch, http=http)
    state_file(run_root).unlink(missing_ok=True)
    use_token()
    log = local_folder(run_root) / "logs" / "cluster.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        host = subprocess.Popen(
            [sys.executable, "-m", "actors.hosting.local_cluster", str(state_file(run_root)), str(logical_cpus)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            env={**ENVIRONMENT, **os.environ, TAG: uuid.uuid4().hex},
            start_new_session=True,
            pass_fds=[claim.fileno()] if claim else [],
        )
    if claim is not None:
        claim.close()  # here; the process that holds Ray keeps it
    assert host.stdin is not None
    host.stdin.write(launch.to_json() if launch else "")
    host.stdin.close()
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if state_file(run_root).exists():
            return LocalCluster(**read_json(state_file(run_root)))
        if host.poll() is not None:
            break
        time.sleep(0.1)
    host.kill()
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
    raise ResourceError(f"Ray did not start on this machine; see {log}:\n{tail}")


def _hold(state: Path, logical_cpus: int) -> None:
    import ray

    scratch = tempfile.mkdtemp(prefix="proxykd-ray-")
    ray.init(
        num_cpus=logical_cpus,
        include_dashboard=False,
        _temp_dir=scratch,
        log_to_driver=False,
        configure_logging=False,
    )
    address = ray.get_runtime_context().gcs_address
    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):  # after ray.init, which sets its own
        signal.signal(number, lambda *_: asked.set())
    if spec := sys.stdin.read():
        from actors.run.coordinator import launch

        launch(replace(Launch.from_json(spec), cluster_pid=os.getpid()))
    cluster = LocalCluster(address, os.getpid(), os.environ[TAG])
    write_json(state, asdict(cluster))
    print(json.dumps({"address": address, "logs": scratch}), flush=True)
    vital = _vital_processes()
    while all(map(_runs, vital)):
        if asked.wait(WATCH_S):
            ray.shutdown()
            if state.exists() and LocalCluster(**read_json(state)) == cluster:  # not a newer one's
                state.unlink()
            return
    # Ray does not start these again: everything else would wait for them, so it ends, and `resume` starts anew.
    print("Ray's GCS or raylet was killed", flush=True)
    cluster.kill()
    os._exit(1)  # an orderly end would wait for the dead


def _vital_processes() -> list[int]:
    """Ray's GCS and raylet, which this process started."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [int(pid) for pid in children if re.search(rb"gcs_server|raylet/raylet", _command(int(pid)))]


def _command(pid: int) -> bytes:
    """Empty for a process that has ended, also for a zombie."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _runs(pid: int) -> bool:
    return _command(pid) != b""


if __name__ == "__main__":
    _hold(Path(sys.argv[1]), int(sys.argv[2]))
