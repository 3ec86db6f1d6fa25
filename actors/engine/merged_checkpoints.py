"""Base + adapter as checkpoints to load into the engine: merged when they are asked for, the last few kept ready."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import weakref
from pathlib import Path

from proxykd.models.loading import write_adapted
from proxykd.planning.machine import available_memory_gib, free_gib, held_gib
from proxykd.runs.links import locked

PREFIX = f"proxykd-merged-{os.getuid()}-"
KEPT = 4
"""At most, and only while memory and disk have room for two more: what the memory does not hold is read from disk, and
that takes as long as merging."""


class MergedCheckpoints:
    """Of one engine, in a folder of its own. What a killed engine left is removed by the next one on its machine."""

    def __init__(self, base: Path, dtype: str):
        self._base = base
        self._dtype = dtype
        self._size_gib = held_gib(base)
        self._ready: dict[str, Path] = {}
        """By the adapter's directory, the one that was asked for last at the end."""
        temporary = Path(tempfile.gettempdir())
        with locked(temporary / PREFIX.rstrip("-")):
            for left in temporary.glob(f"{PREFIX}*"):
                _remove_unless_held(left)
            self._folder = Path(tempfile.mkdtemp(prefix=PREFIX))
            _hold(self._folder)
        self.close = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        """Removes all of them; again, nothing."""

    def of(self, adapter: Path) -> Path:
        """The checkpoint of an adapter's directory. Takes seconds where it has to be merged.

        Raises:
            IntegrityError: the adapter is not what its manifest says, or does not fit the base.
        """
        ready = self._ready.pop(adapter.name, None)
        if ready is None:
            self._make_room()
            ready = self._folder / adapter.name
            ready.mkdir()
            try:
                write_adapted(self._base, adapter, ready, self._dtype)
            except BaseException:
                shutil.rmtree(ready)
                raise
            self._size_gib = held_gib(ready)
        self._ready[adapter.name] = ready
        return ready

    def drop(self, checkpoint: Path) -> None:
        """It is merged anew when it is next asked for."""
        self._ready.pop(checkpoint.name, None)
        shutil.rmtree(checkpoint)

    def _make_room(self) -> None:
        while self._ready and (len(self._ready) >= KEPT or self._room_gib() < 2 * self._size_gib):
            self.drop(next(iter(self._ready.values())))

    def _room_gib(self) -> float:
        return min(available_memory_gib(), free_gib(self._folder))


def _hold(folder: Path) -> None:
    """Marks a folder as in use for as long as this process lives."""
    fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_EX)


def _remove_unless_held(folder: Path) -> None:
    seen = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(seen, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        """Its engine lives."""
    finally:
        os.close(seen)
