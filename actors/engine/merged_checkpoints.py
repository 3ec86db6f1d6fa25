"""Base + adapter as checkpoints to load into the engine: merged when they are asked for, the last few kept ready."""

from __future__ import annotations

import shutil
import weakref
from pathlib import Path

from actors.engine.scratch_folders import claim
from proxykd.planning.machine import available_memory_gib, free_gib, held_gib

KEPT = 4
"""At most, and only while memory and disk have room for two more: what the memory does not hold is read from disk, and
that takes as long as merging."""


class MergedCheckpoints:
    """Of one engine, in a folder of its own."""

    def __init__(self, base: Path, dtype: str):
        self._base = base
        self._dtype = dtype
        self._size_gib = held_gib(base)
        self._ready: dict[str, Path] = {}
        """By the adapter's directory, the one that was asked for last at the end."""
        self._folder = claim()
        self.close = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        """Removes all of them; again, nothing."""

    def of(self, adapter: Path) -> Path:
        """The checkpoint of an adapter's directory. Takes seconds where it has to be merged.

        Raises:
            IntegrityError: the adapter is not what its manifest says, or does not fit the base.
        """
        ready = self._ready.pop(adapter.name, None)
        if ready is None:
            from proxykd.models.loading import write_adapted  # brings torch, which no front of the engine needs

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
