"""An adapter merged into its base, tensor by tensor from file to file: no model is loaded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from proxykd.errors import IntegrityError
from proxykd.models.checkpoint_files import Checkpoint, examine, name_in_file, write_checkpoint
from proxykd.models.model_sources import texts
from proxykd.models.tensor_files import NewTensor, StoredTensor, read_header

PREFIX, A, B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
"""How PEFT names an adapter's weights."""


@dataclass(frozen=True)
class Delta:
    """What an adapter adds to one weight: (B A) * scaling."""

    a: StoredTensor
    b: StoredTensor
    scaling: float

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.b.shape[0], self.a.shape[1])

    def merged(self, weight: StoredTensor, transposed: bool) -> Tensor:
        """The weight with it, in float32: bfloat16 drops small deltas. One copy in float32 is all that it takes."""
        delta = (self.b.read().float() @ self.a.read().float()).mul_(self.scaling)
        return (delta.T if transposed else delta).add_(weight.read())


def write_merged(base: Path, adapter: Path | None, directory: Path, dtype: torch.dtype) -> bool:
    """Writes base + adapter in the base's own files, cast to `dtype`, with its config and tokenizer.

    Returns False, with nothing written, where the files hold a weight of the adapter in another form than the model
    does: experts that are fused when they are loaded.

    Raises:
        IntegrityError: the adapter does not fit the base.
    """
    checkpoint = Checkpoint.read(base)
    deltas = {} if adapter is None else _deltas(adapter, checkpoint)
    if deltas is None:
        return False
    # GPT-2 keeps its matrices transposed, square ones too: the others tell.
    transposed = any(
        checkpoint.tensors[name].shape == delta.shape[::-1] != delta.shape for name, delta in deltas.items()
    )
    for name, delta in deltas.items():
        if checkpoint.tensors[name].shape != (delta.shape[::-1] if transposed else delta.shape):
            raise IntegrityError(
                f"{adapter} does not fit {base}: its {name} has shape {list(delta.shape)}, the base's "
                f"{list(checkpoint.tensors[name].shape)}"
            )

    def new(name: str, stored: StoredTensor) -> NewTensor:
        target, delta = dtype if stored.dtype.is_floating_point else stored.dtype, deltas.get(name)

        def make() -> Tensor:
            return (stored.read() if delta is None else delta.merged(stored, transposed)).to(target)

        return NewTensor(target, stored.shape, make)

    files = checkpoint.files.items()
    write_checkpoint(directory, {file: {n: new(n, stored) for n, stored in tensors.items()} for file, tensors in files})
    copy_texts(base, directory, dtype)
    return True


def copy_texts(base: Path, directory: Path, dtype: torch.dtype) -> None:
    """The base's config, which is to name `dtype`, its tokenizer, template and stop tokens."""
    for path in texts(base):
        target = directory / path.relative_to(base)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    config: dict[str, Any] = json.loads((directory / "config.json").read_text())
    config.pop("torch_dtype", None)
    config["dtype"] = str(dtype).removeprefix("torch.")
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _deltas(adapter: Path, checkpoint: Checkpoint) -> dict[str, Delta] | None:
    """By the names of the base's files; None where these have no tensor for one of them."""
    settings = json.loads((adapter / "adapter_config.json").read_text())
    scaling = settings["lora_alpha"] / settings["r"]
    weights = read_header(adapter / "adapter_model.safetensors")
    modules = {key.removesuffix(A).removeprefix(PREFIX) for key in weights if key.endswith(A)}
    if len(weights) != 2 * len(modules):
        raise IntegrityError(f"{adapter} holds more than LoRA's A and B: {sorted(weights)[:3]}")
    names = _names_in_files({f"{module}.weight" for module in modules}, checkpoint)
    if names is None:
        return None
    return {
        names[f"{module}.weight"]: Delta(weights[PREFIX + module + A], weights[PREFIX + module + B], scaling)
        for module in modules
    }


def _names_in_files(names: set[str], checkpoint: Checkpoint) -> dict[str, str] | None:
    if names <= checkpoint.tensors.keys():
        return {name: name for name in names}
    from transformers import AutoConfig

    model = examine(checkpoint, AutoConfig.from_pretrained(checkpoint.folder))
    found = {name: file_name for name in names if (file_name := name_in_file(model, name, checkpoint)) is not None}
    return found if len(found) == len(names) else None
