"""Which files lie below a folder, and whether one is still the file that it was: for what is kept of files once read.

A run directory's files are immutable only as long as the run is: `--fresh` writes others by the same names.
"""

from __future__ import annotations

import os
from collections.abc import Hashable
from contextlib import suppress
from pathlib import Path
from typing import Any

from proxykd.runs.storage import is_remote


def file_versions(folder: Path) -> dict[str, Hashable]:
    """Every file below `folder`, by its path from there (with slashes), and its version: a value that is another one
    once the file has been written anew. Empty where there is no folder. One request of an object store."""
    return _in_store(folder) if is_remote(folder) else _on_disk(folder)


def _in_store(folder: Any) -> dict[str, Hashable]:
    found = folder.fs.find(folder.path, detail=True)
    start = len(folder.path.rstrip("/")) + 1
    return {name[start:]: (facts["ETag"], facts["LastModified"], facts["size"]) for name, facts in found.items()}


def _on_disk(folder: Path) -> dict[str, Hashable]:
    found: dict[str, Hashable] = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            with suppress(FileNotFoundError):  # a writer's temporary file
                facts = path.stat()
                found[path.relative_to(folder).as_posix()] = (facts.st_ino, facts.st_mtime_ns, facts.st_size)
    return found
