"""Large files that many runs share: linked instead of copied, hashed once a machine, made by one process at a time."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from proxykd.runs.storage import cache_folder, sha256_file, write_atomic

WORTH_REMEMBERING = 2**26
"""Bytes of a file from which on its checksum is kept in the cache folder."""


def link(source: Path, target: Path) -> None:
    """`source` under another name: a hard link, else a symbolic one (another file system), else a copy (neither)."""
    source = source.resolve()
    try:
        os.link(source, target)
    except OSError:
        try:
            target.symlink_to(source)
        except OSError:
            shutil.copyfile(source, target)


def known_sha256(path: Path) -> str:
    """A file's SHA-256, read anew only where inode, size or time of change are others than when it was last read."""
    facts = path.stat()
    if facts.st_size < WORTH_REMEMBERING:
        return sha256_file(path)
    name = "-".join(map(str, (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns)))
    note = cache_folder() / "sha256" / name
    if not note.exists():
        write_atomic(note, sha256_file(path).encode())
    return note.read_text()


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Runs its body in one process of this machine at a time."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(f".{target.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
