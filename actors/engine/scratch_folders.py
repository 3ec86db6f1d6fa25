"""Folders for an engine's temporary files, its process's own while it lives: what a killed one left is removed."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

from proxykd.runs.links import locked

PREFIX = f"proxykd-merged-{os.getuid()}"


def claim() -> Path:
    """A new folder, this process's until it ends, and no older one of a process that has ended."""
    with locked(Path(tempfile.gettempdir()) / PREFIX):
        _remove_left()
        folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}-"))
        fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_EX)
    return folder


def remove_left() -> None:
    """Removes the folders of processes that have ended."""
    with locked(Path(tempfile.gettempdir()) / PREFIX):
        _remove_left()


def _remove_left() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}-*"):
        seen = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(seen, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            """Its process lives."""
        finally:
            os.close(seen)
