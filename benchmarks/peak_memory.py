"""What a process holds at most: resident, as the kernel counts it, or in tensors, to the byte."""

from __future__ import annotations

import ctypes
import gc
import time
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def reset_peak_mib() -> float:
    """Gives what is free in this process back to the machine and lets the kernel count the peak anew from here on."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return peak_mib()


def peak_mib() -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


RESIZING = ("c10d", "fsdp")
"""Operations about which sharded models let storages grow and shrink that they keep."""


class Alive(TorchDispatchMode):
    """Within it, `held` and `peak` are the bytes of tensors that came after it was entered and live still, or at once.

    Looked at after every operation, those of backward passes and of sharded tensors' parts included: the same on every
    machine. What C++ allocates within an operation is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self._storages: dict[int, StorageWeakRef] = {}
        self.held = self.peak = 0

    def restart(self) -> None:
        """Counts the peak anew from here on."""
        self.peak = self.held

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if DTensor in types:
            return NotImplemented  # its operations on the parts come by here too
        known = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        found = func(*args, **(kwargs or {}))
        for tensor in _tensors(found):
            reference = StorageWeakRef(tensor.untyped_storage())
            if reference.cdata not in known and reference.cdata not in self._storages:  # no view of what was there
                self._storages[reference.cdata] = reference
                self.held += tensor.untyped_storage().nbytes()
        if func.namespace == "c10d":
            time.sleep(0.002)  # gloo's threads let go of what they sent once they get Python's lock
        if self.held > self.peak or func.namespace in RESIZING:
            self._look()
        return found

    def _look(self) -> None:
        """Takes off what has gone since the last look: `held` is an upper bound in between."""
        held = 0
        for key, reference in list(self._storages.items()):
            storage = torch.UntypedStorage._new_with_weak_ptr(reference.cdata)
            if storage is None:
                del self._storages[key]
            else:
                held += storage.nbytes()
        self.held, self.peak = held, max(self.peak, held)


def _tensors(values: Any) -> list[torch.Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]
