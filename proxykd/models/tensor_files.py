"""Safetensors files, read and written one tensor at a time: neither a model nor a file is ever whole in memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from proxykd.errors import ModelError
from proxykd.models.model_sources import require_no_pointer

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in a file: bytes `start` to `end`."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int

    def read(self) -> Tensor:
        buffer = bytearray(self.end - self.start)
        if not buffer:
            return torch.empty(self.shape, dtype=self.dtype)
        with self.file.open("rb") as file:
            file.seek(self.start)
            file.readinto(buffer)
        return torch.frombuffer(buffer, dtype=self.dtype).reshape(self.shape)

    def rows(self, count: int) -> StoredTensor:
        """Its first rows."""
        row_bytes = (self.end - self.start) // self.shape[0]
        return replace(self, shape=(count, *self.shape[1:]), end=self.start + count * row_bytes)


@dataclass(frozen=True)
class NewTensor:
    """A tensor to be written, made when its turn comes."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Tensor]

    @property
    def size(self) -> int:
        """How many bytes it has."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


def read_header(path: Path) -> dict[str, StoredTensor]:
    """What a file holds, by name; of its tensors nothing is read.

    Raises:
        ModelError: a Git-LFS pointer, a file that was cut short, or no safetensors; with the file's name.
    """
    require_no_pointer(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= size - 8:
            raise ModelError(f"{path} is cut short or no safetensors file ({size} bytes); fetch it again")
        text = file.read(length)
    try:
        header: dict[str, Any] = json.loads(text)
    except ValueError:
        raise ModelError(f"{path} is no safetensors file: its header is not JSON; fetch it again") from None
    header.pop("__metadata__", None)
    begin = 8 + length
    end = begin + max((facts["data_offsets"][1] for facts in header.values()), default=0)
    if end != size:
        raise ModelError(f"{path} is cut short: {size} bytes of the {end} that its header names; fetch it again")
    return {name: _stored(path, name, facts, begin) for name, facts in header.items()}


def _stored(path: Path, name: str, facts: dict[str, Any], begin: int) -> StoredTensor:
    if facts["dtype"] not in DTYPES:
        raise ModelError(
            f"{path}: {name} is {facts['dtype']}, a quantised format; give a copy of the model in bfloat16 or float32"
        )
    start, end = facts["data_offsets"]
    return StoredTensor(path, DTYPES[facts["dtype"]], tuple(facts["shape"]), begin + start, begin + end)


def write_tensors(path: Path, tensors: dict[str, NewTensor]) -> None:
    """A file of tensors, each made, written and let go before the next."""
    # Wide types first, as safetensors itself does: every tensor is then aligned to its type.
    ordered = sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, new in ordered:
        header[name] = {"dtype": NAMES[new.dtype], "shape": new.shape, "data_offsets": [offset, offset + new.size]}
        offset += new.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, new in ordered:
            tensor = new.make()
            assert (tensor.dtype, tuple(tensor.shape)) == (new.dtype, new.shape), name
            file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
            del tensor
