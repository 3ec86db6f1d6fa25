"""Where a training stage goes on after a death: RUN/checkpoints/<stage>/step-000012.pt, each with its marker; and the
weights of its best point so far, best-000008.pt.

A checkpoint is written whole before the one before it goes, and one that is not what its marker says is passed over,
so that a kill or a torn file costs the steps since the last one and nothing else. A best point goes once no checkpoint
refers to it.
"""

from __future__ import annotations

import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from proxykd.errors import IntegrityError
from proxykd.runs.storage import discard_shard, is_remote, verify_shard, write_shard

State = dict[str, Any]


class Checkpoints:
    """The checkpoints of one kind of one stage. One process writes (rank 0); any may read."""

    def __init__(self, directory: Path, kind: Literal["step", "best"] = "step"):
        self._directory, self._kind = directory, kind

    def latest(self) -> State | None:
        """The newest checkpoint that is whole; None where there is none.

        Its tensors are mapped from the file: a worker reads of them what it takes, and copies that.
        """
        for path in self._finished():
            try:
                verify_shard(path)
            except IntegrityError:
                continue
            return _map(path)
        return None

    def at(self, step: int) -> State:
        """Raises:
        IntegrityError: it is not there, or not what its marker says.
        """
        path = self._path(step)
        verify_shard(path)
        return _map(path)

    def save(self, step: int, state: State) -> None:
        write_shard(self._path(step), partial(_write, state), {"step": step})

    def forget(self, before: int) -> None:
        """Those of earlier steps are no longer needed."""
        for old in self._finished():
            if old.name < self._path(before).name:
                discard_shard(old)

    def clear(self) -> None:
        """The stage is done, its result stands elsewhere: all kinds of its checkpoints go."""
        for marker in self._directory.glob("*.ok"):
            discard_shard(marker.with_suffix(".pt"))

    def _path(self, step: int) -> Path:
        return self._directory / f"{self._kind}-{step:06d}.pt"

    def _finished(self) -> list[Path]:
        markers = self._directory.glob(f"{self._kind}-*.ok")
        return sorted((marker.with_suffix(".pt") for marker in markers), reverse=True)


def _map(path: Path) -> State:
    if is_remote(path):
        with tempfile.TemporaryDirectory(prefix="proxykd-") as scratch:  # what is mapped outlives its name
            local = Path(scratch) / path.name
            with path.open("rb") as remote, local.open("wb") as file:
                shutil.copyfileobj(remote, file)
            return _map(local)
    state: State = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return state


def _write(state: State, target: Path) -> None:
    with target.open("wb") as file:  # given a path, torch does not say why a write failed
        torch.save(state, file)
