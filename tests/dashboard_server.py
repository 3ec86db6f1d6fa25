"""`proxykd dashboard` as a process."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import httpx

from tests.object_store import free_port


class Dashboard:
    """`proxykd dashboard` on a port of its own, that can be killed and started again."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.port = free_port()
        self.start()

    def start(self) -> None:
        command = [str(Path(sys.executable).parent / "proxykd"), "dashboard", str(self.folder)]
        self._process = subprocess.Popen([*command, "--http-port", str(self.port)], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                httpx.get(self.url)
                return
            except httpx.TransportError:
                assert self._process.poll() is None, "the dashboard ended"
                time.sleep(0.1)
        raise TimeoutError(self.url)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/dashboard/"
