"""Runs an installer and says what it does: large downloads by name, and that it goes on.

Runs on any Python from 3.8.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

QUIET_S = 10.0
DOWNLOAD = re.compile(r"^\s*(Downloading .*\((\d+)(?:\.\d+)? ?(?:MB|MiB)\))")
LARGE_MB = 20


@contextlib.contextmanager
def alone(venv: Path) -> Iterator[None]:
    """Waits for an install that is at work in this environment, be it a killed one's pip that still writes."""
    venv.mkdir(exist_ok=True)
    with (venv / "install.lock").open("w") as held:
        os.set_inheritable(held.fileno(), True)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another install is at work in {venv}; waiting for its end", flush=True)
            fcntl.flock(held, fcntl.LOCK_EX)
        yield


class Stopped(Exception):
    """An installer failed; the message says at what, and its last lines."""


def watch(command: list[str], what: str) -> None:
    """Runs a command to its end. Raises Stopped where it fails."""
    lines: deque[str] = deque(maxlen=15)
    told = [time.monotonic()]
    try:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, close_fds=False
        )
    except OSError as error:
        raise Stopped(f"{what}: {error}") from error
    reader = threading.Thread(target=_relay, args=(process, lines, told), daemon=True)
    reader.start()
    started, received = time.monotonic(), _received_mb()
    try:
        while process.poll() is None:
            time.sleep(0.05)
            if time.monotonic() - told[0] > QUIET_S:
                told[0] = time.monotonic()
                came = _received_mb() - received
                network = f", {came:,.0f} MB received" if came >= 1 else ""
                print(f"  {what}: {told[0] - started:.0f} s{network}", flush=True)
    except BaseException:
        process.terminate()
        raise
    reader.join()
    if process.returncode:
        raise Stopped(f"{what}: {' '.join(command[:4])} ... ended with {process.returncode}:\n" + "\n".join(lines))


def last_words(text: str) -> str:
    """The line of an installer's output that says most, without its colours and labels."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(error|ERROR)\b", line)]
    return re.sub(r"^(error|ERROR): *", "", (errors or lines or ["nothing"])[-1])


def _relay(process: subprocess.Popen[str], lines: deque[str], told: list[float]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line.rstrip())
        download = DOWNLOAD.match(line)
        if download and int(download[2]) >= LARGE_MB:
            told[0] = time.monotonic()
            print(f"  {download[1]}", flush=True)


def _received_mb() -> float:
    """By all network interfaces since the machine started, the loopback left out."""
    rows = (line.split(":") for line in Path("/proc/net/dev").read_text().splitlines()[2:])
    return sum(int(counts.split()[0]) for name, counts in rows if name.strip() != "lo") / 1e6
