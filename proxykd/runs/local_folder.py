"""Where a machine keeps what is its own about a run: what no other machine would know what to do with."""

from __future__ import annotations

import hashlib
from pathlib import Path

from proxykd.runs.storage import cache_folder, is_remote


def local_folder(run_root: Path) -> Path:
    """Returns this machine's own folder for a run: the run directory, or in the cache for a run in an object store."""
    if not is_remote(run_root):
        return run_root
    folder = cache_folder() / "runs" / f"{run_root.name}-{hashlib.sha256(str(run_root).encode()).hexdigest()[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
