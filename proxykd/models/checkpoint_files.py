"""A model's weights as they lie in a folder: which tensor is in which file, and whether they make the model whole."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from proxykd.errors import ModelError
from proxykd.models.tensor_files import NewTensor, StoredTensor, read_header, write_tensors

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class Checkpoint:
    """The weight files of a folder, each with its tensors. Only headers were read."""

    folder: Path
    files: dict[str, dict[str, StoredTensor]]

    @classmethod
    def read(cls, folder: Path) -> Checkpoint:
        """
        Raises:
            ModelError: no safetensors, or a file of them that is missing, a Git-LFS pointer or cut short.
        """
        if (folder / SINGLE).exists():
            names = [SINGLE]
        elif (folder / INDEX).exists():
            names = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
        else:
            raise ModelError(f"{folder} has no weights in safetensors, the one format that is read; convert them")
        if missing := [name for name in names if not (folder / name).exists()]:
            raise ModelError(f"{folder / missing[0]} is missing, which {INDEX} names; fetch it")
        return cls(folder, {name: read_header(folder / name) for name in names})

    @property
    def tensors(self) -> dict[str, StoredTensor]:
        return {name: stored for tensors in self.files.values() for name, stored in tensors.items()}


def write_checkpoint(folder: Path, files: dict[str, dict[str, NewTensor]]) -> None:
    """Files of tensors, and their index where they are several."""
    for file, tensors in files.items():
        write_tensors(folder / file, tensors)
    write_index(folder, {file: {name: new.size for name, new in tensors.items()} for file, tensors in files.items()})


def write_index(folder: Path, sizes: dict[str, dict[str, int]]) -> None:
    """What transformers and vLLM find a tensor's file by; a model of one file needs none. Sizes in bytes."""
    if list(sizes) == [SINGLE]:
        return
    total = sum(size for tensors in sizes.values() for size in tensors.values())
    weight_map = {name: file for file, tensors in sizes.items() for name in tensors}
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=1))


def examine(checkpoint: Checkpoint, config: Any) -> Any:
    """The model of these weights, built by transformers itself but without memory for them (device "meta").

    Raises:
        ModelError: no causal language model, quantised weights, or weights that lack a tensor or have one of another
            shape: transformers itself would take random values for it.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    file = checkpoint.folder / "config.json"
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(f"{file}: {config.model_type} is no decoder-only language model; choose another")
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(f"{file}: the weights are quantised; give a copy of the model in bfloat16 or float32")
    family: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    model, info = family.from_pretrained(
        None,
        config=config,
        state_dict={k: torch.empty(v.shape, dtype=v.dtype, device="meta") for k, v in checkpoint.tensors.items()},
        device_map={"": "meta"},
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    require_whole(info, checkpoint.folder)
    return model


def require_whole(info: dict[str, Any], folder: Path) -> None:
    """Raises ModelError where transformers found no value for a weight, or one of another shape. Tied ones have one."""
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"the weights in {folder} lack {len(missing)} tensor(s), first {missing[0]}; fetch the model again, whole"
        )
    if wrong := sorted(info["mismatched_keys"]):
        name, found, expected = wrong[0]
        raise ModelError(
            f"the weights in {folder} do not fit its config.json: {name} has shape {list(found)}, not {list(expected)}"
        )


def name_in_file(model: Any, name: str, checkpoint: Checkpoint) -> str | None:
    """What a model's tensor is called in its files, which some families name otherwise; None: no file has it as one."""
    from transformers.core_model_loading import revert_weight_conversion

    tensors = checkpoint.tensors
    if name in tensors:
        return name
    found = list(revert_weight_conversion(model, {name: torch.empty(0, device="meta")}))
    return found[0] if len(found) == 1 and found[0] in tensors else None
