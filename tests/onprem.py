"""A real `ray up cluster-onprem.yaml` on this machine: two sshd in namespaces of their own stand for two machines.

    python -m tests.onprem [--folder DIR]        as root, with Debian's openssh-server and rsync

Starts head and worker by SSH, submits a run through the dashboard's tunnel, kills the head's GCS and raylet, runs
`ray up` again, and waits for the run's end. What differs from the file as it is shipped: addresses, user and key; this
checkout's environment in place of the install (requirements/gpu.lock is for GPUs); and, since both "machines" have one
network between them, a port and a node address each.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import yaml

from proxykd.runs.journal import replay
from proxykd.runs.run_directory import RunDirectory
from tests import tiny_model
from tests.object_store import free_port
from tests.ray_nodes import wait_for
from tests.small_run import run_config

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
USER = "proxykd"
HEAD, WORKER = "127.0.0.11", "127.0.0.12"
SSHD = """
mount --bind {home} /home/{user}
mount --bind {shared} /mnt/proxykd
mount --bind {tmp} /tmp
exec /usr/sbin/sshd -D -e -p 22 -o ListenAddress={address} -o PidFile=none -o StrictModes=no
"""


@contextlib.contextmanager
def machines(folder: Path) -> Iterator[None]:
    """Two places that are reached by SSH: their own processes, home and /tmp; the shared storage at /mnt/proxykd."""
    subprocess.run(["useradd", "-m", "-s", "/bin/bash", USER], capture_output=True)
    shared = folder / "shared"
    for path in (shared / "runs", Path("/mnt/proxykd"), Path("/run/sshd")):
        path.mkdir(parents=True, exist_ok=True)
    shutil.chown(shared / "runs", USER)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "key"], check=True)
    started = []
    for address in (HEAD, WORKER):
        home, tmp = folder / address / "home", folder / address / "tmp"
        (home / ".ssh").mkdir(parents=True)
        tmp.mkdir()
        tmp.chmod(0o1777)
        shutil.copy(folder / "key.pub", home / ".ssh" / "authorized_keys")
        shutil.copy("/etc/skel/.bashrc", home)
        subprocess.run(["chown", "-R", USER, home], check=True)
        script = SSHD.format(home=home, shared=shared, tmp=tmp, user=USER, address=address)
        alone = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child", "bash", "-c", script]
        log = (folder / f"{address}.log").open("wb")
        started.append(subprocess.Popen(alone, stdin=subprocess.DEVNULL, stdout=log, stderr=log))
    try:
        time.sleep(2)
        yield
    finally:
        for process in started:
            process.kill()


def write_files(folder: Path) -> str:
    """The cluster's file, the job's directory, the token and the model; returns the run's id."""
    cluster: dict[str, Any] = yaml.safe_load((ROOT / "cluster-onprem.yaml").read_text())
    cluster["provider"] |= {"head_ip": HEAD, "worker_ips": [WORKER]}
    cluster |= {"min_workers": 1, "max_workers": 1}
    cluster["auth"] = {"ssh_user": USER, "ssh_private_key": str(folder / "key")}
    cluster["file_mounts"] = {"~/proxykd": str(ROOT), "~/.ray/auth_token": str(folder / "token")}
    installs = [command for command in cluster["setup_commands"] if "pip install" in command or "uv venv" in command]
    cluster["setup_commands"] = [
        f"ln -sfn {BIN.parent} ~/proxykd-env" if command is installs[0] else command
        for command in cluster["setup_commands"]
        if command not in installs[1:]
    ]
    for key, address in (("head_start_ray_commands", HEAD), ("worker_start_ray_commands", WORKER)):
        cluster[key][1] += f" --node-ip-address={address} --dashboard-agent-listen-port={free_port()}"
    (folder / "cluster.yaml").write_text(yaml.safe_dump(cluster, sort_keys=False, width=1000))
    (folder / "token").write_text(os.urandom(32).hex())
    (folder / "token").chmod(0o600)
    tiny_model.make_model(folder / "shared" / "tiny")
    subprocess.run(["chmod", "-R", "a+rX", folder / "shared"], check=True)
    (folder / "job").mkdir()
    rows = tiny_model.corpus_rows(100)
    (folder / "job" / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = {"path": "corpus.jsonl", "max_length": 96, "shard_records": 8}
    config = run_config("/mnt/proxykd/tiny", "unused", corpus=corpus)
    sections = config.model_dump(mode="json", exclude_defaults=True)
    del sections["runs_dir"]
    (folder / "job" / "c.yaml").write_text(yaml.safe_dump(sections))
    return config.run_id


def main(folder: Path) -> None:
    environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
    environment["RAY_UP_enable_autoscaler_v2"] = "0"
    file, port = str(folder / "cluster.yaml"), free_port()

    def ray(*command: str) -> str:
        told = subprocess.run([BIN / "ray", *command], env=environment, capture_output=True, text=True, timeout=600)
        if told.returncode:
            raise SystemExit(f"ray {' '.join(command)} failed:\n{told.stdout[-3000:]}\n{told.stderr[-3000:]}")
        return told.stdout

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {text}", flush=True)

    began = time.monotonic()
    with machines(folder):
        run = RunDirectory(folder / "shared" / "runs" / write_files(folder))
        try:
            ray("up", file, "-y")
            say("ray up: the head is there")
            wait_for(lambda: "2 local.cluster.node" in ray("exec", file, "ray status"), 300, "the worker")
            say("ray status: 2 nodes")
            tunnel = subprocess.Popen([BIN / "ray", "dashboard", file, "-p", str(port)], env=environment)
            time.sleep(10)
            entry = ["--", "proxykd", "run", "c.yaml", "--http-port", str(free_port())]
            address = ["--address", f"http://localhost:{port}"]
            told = ray("job", "submit", *address, "--working-dir", str(folder / "job"), "--no-wait", *entry)
            say(f"submitted: {re.search(r'raysubmit_[A-Za-z0-9]+', told)[0]}")  # type: ignore[index]
            wait_for(lambda: (run.stages / "corpus.json").exists(), 300, "the run's first stages")
            for process in psutil.process_iter():
                with contextlib.suppress(psutil.Error):
                    line = " ".join(process.cmdline())
                    mine = process.username() == USER
                    if mine and (
                        "gcs_server" in line or (f"node_ip_address={HEAD}" in line and "raylet/raylet" in line)
                    ):
                        process.kill()
            say("SIGKILL to the head's GCS and raylet")
            tunnel.kill()
            ray("up", file, "-y")
            say("ray up again")
            wait_for(lambda: replay(run.journal)[-1]["epoch"] == 2, 300, "the coordinator, by itself")
            say("the coordinator came back by itself: epoch 2")
            wait_for(lambda: replay(run.journal)[-1]["event"] == "RUN_FINISHED", 1200, "the run's end")
            say("the run is done")
        finally:
            ray("down", file, "-y")
            say("ray down")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/proxykd-onprem"))
    arguments = parser.parse_args()
    shutil.rmtree(arguments.folder, ignore_errors=True)
    arguments.folder.mkdir(parents=True)
    main(arguments.folder)
