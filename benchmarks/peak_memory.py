"""What a process holds at most: resident, as the kernel counts it, or in tensors, to the byte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def reset_peak_mib() -> float:
    """Lets the kernel count the peak anew from here on."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_mib()


def peak_mib() -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def tensor_peak(work: Callable[[], object]) -> int:
    """Bytes of tensors that were alive at once while `work` ran, over those that were before it.

    Seen after every operation, those of backward passes and of sharded tensors' parts included. The same on every machine.
    """
    with _Alive() as alive:
        work()
    return alive.peak


class _Alive(TorchDispatchMode):
    """Follows the storage of each tensor that an operation gives, until nothing holds it."""

    def __init__(self) -> None:
        super().__init__()
        self._storages: dict[int, StorageWeakRef] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(hasattr(kind, "__torch_dispatch__") and kind.__name__ == "DTensor" for kind in types):
            return NotImplemented  # its operations on the parts come by here too
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor):
                reference = StorageWeakRef(tensor.untyped_storage())
                self._storages.setdefault(reference.cdata, reference)
        self.peak = max(self.peak, self._held())
        return found

    def _held(self) -> int:
        held = 0
        for key, reference in list(self._storages.items()):
            storage = torch.UntypedStorage._new_with_weak_ptr(reference.cdata)
            if storage is None:
                del self._storages[key]
            else:
                held += storage.nbytes()
        return held
