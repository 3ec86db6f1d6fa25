"""The weights that a run's models start from: the source's own files, or made of them once a machine.

A file in which nothing changes is linked, never copied; the others are written tensor by tensor into the cache folder
(PROXYKD_CACHE), where every run of this machine that wants the same has them.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from proxykd.errors import ModelError
from proxykd.models.checkpoint_files import Checkpoint, name_in_file, write_index
from proxykd.models.tensor_files import NewTensor, StoredTensor, write_tensors
from proxykd.runs.links import known_sha256, link, locked
from proxykd.runs.storage import READY, cache_folder, publish_directory

OF_LAYERS = ("layer_types", "no_rope_layers")
"""Settings of a config that hold one value a layer."""


@dataclass(frozen=True)
class Recipe:
    """What is made of a source's weights: layers dropped, embeddings cut to `vocabulary` rows, another dtype."""

    drop_layers: tuple[int, ...]
    vocabulary: int
    dtype: str

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype


def prepare(checkpoint: Checkpoint, model: Any, recipe: Recipe) -> Checkpoint:
    """The weights of `recipe`: the checkpoint itself where they are that already, else a folder in the cache.

    `model` is the checkpoint's (see `examine`).

    Raises:
        ModelError: layers that the model does not have, or fewer embeddings than the vocabulary has tokens.
    """
    plan = _Plan(checkpoint, model, recipe)
    files = {file: plan.of(tensors) for file, tensors in checkpoint.files.items()}
    if all(files[file] == _as_is(tensors) for file, tensors in checkpoint.files.items()):
        return checkpoint
    target = cache_folder() / "models" / _key(checkpoint, recipe)
    with locked(target):
        if not (target / READY).exists():
            publish_directory(target, lambda folder: _write(checkpoint, files, folder), known_sha256)
    return Checkpoint.read(target)


def prune(config: Any, drop: tuple[int, ...]) -> None:
    """Takes layers out of a model's config, in place."""
    text = config.get_text_config()
    for name in OF_LAYERS:
        if values := getattr(text, name, None):
            setattr(text, name, [value for i, value in enumerate(values) if i not in drop])
    text.num_hidden_layers -= len(drop)


@dataclass(frozen=True)
class _Kept:
    """A tensor of the source, perhaps cut, under its new name and in its new dtype."""

    stored: StoredTensor
    dtype: torch.dtype

    def make(self) -> Tensor:
        return self.stored.read().to(self.dtype)


def _as_is(tensors: dict[str, StoredTensor]) -> dict[str, _Kept]:
    return {name: _Kept(stored, stored.dtype) for name, stored in tensors.items()}


class _Plan:
    """What becomes of each tensor."""

    def __init__(self, checkpoint: Checkpoint, model: Any, recipe: Recipe):
        self._recipe, drop = recipe, recipe.drop_layers
        self._layers = model.config.get_text_config().num_hidden_layers
        rows = model.get_input_embeddings().weight.shape[0]
        if any(i >= self._layers for i in drop) or len(drop) >= self._layers:
            raise ModelError(
                f"drop_layers {list(drop)} does not fit a model of {self._layers} layers (0 to {self._layers - 1})"
            )
        if rows < recipe.vocabulary:
            raise ModelError(
                f"{checkpoint.folder} has {rows} embeddings for a tokenizer of {recipe.vocabulary} tokens; "
                f"resize the model first"
            )
        self._prefix = _layer_prefix(checkpoint, self._layers) if drop else None
        self._of_tokens = _of_tokens(checkpoint, model) if rows > recipe.vocabulary else set()
        kept = [i for i in range(self._layers) if i not in drop]
        self._new_index = {old: new for new, old in enumerate(kept)}

    def of(self, tensors: dict[str, StoredTensor]) -> dict[str, _Kept]:
        found = {}
        for name, stored in tensors.items():
            if (new := self._renamed(name)) is not None:
                dtype = self._recipe.torch_dtype if stored.dtype.is_floating_point else stored.dtype
                found[new] = _Kept(self._cut(name, stored), dtype)
        return found

    def _renamed(self, name: str) -> str | None:
        """None for a tensor of a layer that is dropped."""
        if self._prefix is None or not name.startswith(self._prefix):
            return name
        index, dot, rest = name.removeprefix(self._prefix).partition(".")
        new = self._new_index.get(int(index))
        return None if new is None else f"{self._prefix}{new}{dot}{rest}"

    def _cut(self, name: str, stored: StoredTensor) -> StoredTensor:
        return stored.rows(self._recipe.vocabulary) if name in self._of_tokens else stored


def _of_tokens(checkpoint: Checkpoint, model: Any) -> set[str]:
    """The tensors that have a row for each token, by their names in the files: of the embedding and of the head."""
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    names = [
        f"{name}.{parameter}"
        for name, module in model.named_modules()
        if any(module is end for end in ends)
        for parameter, _ in module.named_parameters(recurse=False)
    ]
    return {found for name in names if (found := name_in_file(model, name, checkpoint)) is not None}


def _layer_prefix(checkpoint: Checkpoint, layers: int) -> str:
    """What the names of the decoder's layers begin with: `model.layers.`"""
    indices: dict[str, set[int]] = {}
    for name in checkpoint.tensors:
        if match := re.match(r"(.*?\b(?:layers|h)\.)(\d+)\.", name):
            indices.setdefault(match[1], set()).add(int(match[2]))
    found = [prefix for prefix, held in indices.items() if held == set(range(layers))]
    if len(found) != 1:
        raise ModelError(
            f"drop_layers: the decoder's {layers} layers cannot be told from others in {checkpoint.folder} "
            f"(lists of modules: {sorted(indices)}); leave drop_layers out"
        )
    return found[0]


def _key(checkpoint: Checkpoint, recipe: Recipe) -> str:
    digests = [known_sha256(checkpoint.folder / file) for file in checkpoint.files]
    return hashlib.sha256(json.dumps([digests, asdict(recipe)], sort_keys=True).encode()).hexdigest()[:16]


def _write(checkpoint: Checkpoint, files: dict[str, dict[str, _Kept]], folder: Path) -> dict[str, Any]:
    sizes = {}
    for file, tensors in files.items():
        new = {name: NewTensor(kept.dtype, kept.stored.shape, kept.make) for name, kept in tensors.items()}
        if tensors == _as_is(checkpoint.files[file]):
            link(checkpoint.folder / file, folder / file)
        elif new:
            write_tensors(folder / file, new)
        if new:
            sizes[file] = {name: tensor.size for name, tensor in new.items()}
    write_index(folder, sizes)
    return {"made_of": str(checkpoint.folder)}
