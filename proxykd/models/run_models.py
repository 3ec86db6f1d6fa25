"""RUN/models/<name>: a model that a run starts from, as links to weights or, where a link cannot be, a reference.

Its texts (config, tokenizer, template, stop tokens) are the run's own files. Its manifest says where the weights came
from and what was made of them, so that a machine on which a link leads nowhere finds or makes them for itself.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from proxykd.errors import IntegrityError, ModelError
from proxykd.models.checkpoint_files import INDEX, Checkpoint, examine
from proxykd.models.model_sources import is_text, resolve, texts
from proxykd.models.weights import Recipe, prepare
from proxykd.runs.links import known_sha256, link, locked
from proxykd.runs.storage import READY, cache_folder, fetch, is_remote, location, publish_directory, read_json

Facts = dict[str, Any]


def place(weights: Checkpoint, source: Facts, recipe: Recipe, directory: Path, staged: Path) -> Facts:
    """Puts the weights of a model into `staged`, which is to become `directory`: links on a file system.

    An object store takes no link. What every machine can have from its `source` (a hub, a package) is only named
    there; a folder, which only this machine may have, is stored once for all models of the run that are made of it.
    Returns what the manifest is to say of them.
    """
    files = {file: _facts(weights.folder / file) for file in weights.files}
    if not is_remote(directory):
        for file in files:
            link(weights.folder / file, staged / file)
    elif Path(source["source"]).is_dir():
        source = {"stored": _store(weights, directory.parent / "weights")}
    if (weights.folder / INDEX).exists() and list(files) != ["model.safetensors"]:
        (staged / INDEX).write_bytes((weights.folder / INDEX).read_bytes())
    return {"origin": source, "recipe": asdict(recipe), "files": files}


def voice(directory: Path) -> str:
    """A hash of what a run's models have of their proxy: tokenizer, template, stop tokens."""
    files: dict[str, str] = read_json(directory / "manifest.json")["files"]
    spoken = {name: digest for name, digest in files.items() if is_text(name) and name != "config.json"}
    return hashlib.sha256(json.dumps(spoken, sort_keys=True).encode()).hexdigest()[:16]


def local_model(directory: Path) -> Path:
    """A model's folder on this machine with all its weights: itself, or one in the cache that has them linked.

    Raises:
        ModelError: the weights are not on this machine, and cannot be had from where they came from.
        IntegrityError: they are no longer those that the run began with.
    """
    folder = fetch(directory)
    manifest = folder / "manifest.json"
    wanted = read_json(manifest).get("weights") if manifest.exists() else None
    if wanted is None or _has(folder, wanted):
        return folder
    digest = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode() + manifest.read_bytes()).hexdigest()
    local = cache_folder() / "linked" / digest[:16] / directory.name
    with locked(local):
        if not ((local / READY).exists() and _has(local, wanted)):
            found = _find(wanted, directory)

            def build(staged: Path) -> Facts:
                for path in [*texts(folder), *(p for p in [folder / INDEX] if p.exists())]:
                    (staged / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
                    link(path, staged / path.relative_to(folder))
                for file in wanted["files"]:
                    link(found / file, staged / file)
                return {"taken_from": str(directory)}

            publish_directory(local, build, known_sha256)
    return local


def _facts(path: Path) -> Facts:
    facts = path.stat()
    return {"sha256": known_sha256(path), "bytes": facts.st_size, "mtime_ns": facts.st_mtime_ns}


def _has(folder: Path, wanted: Facts) -> bool:
    return all(_unchanged(folder / file, facts) for file, facts in wanted["files"].items())


def _unchanged(path: Path, facts: Facts) -> bool:
    if not path.exists() or path.stat().st_size != facts["bytes"]:
        return False
    return bool(path.stat().st_mtime_ns == facts["mtime_ns"] or known_sha256(path) == facts["sha256"])


def _store(weights: Checkpoint, parent: Path) -> str:
    digests = "".join(known_sha256(weights.folder / file) for file in weights.files)
    key = hashlib.sha256(digests.encode()).hexdigest()[:16]
    if not (parent / key / READY).exists():

        def build(staged: Path) -> Facts:
            for file in weights.files:
                link(weights.folder / file, staged / file)
            return {}

        publish_directory(parent / key, build, known_sha256)
    return str(parent / key)


def _resolve(source: Facts, directory: Path) -> Path:
    try:
        return resolve(source["source"], revision=source["revision"])
    except ModelError as error:
        raise ModelError(
            f"{directory} has no weights on this machine, and their source is not here either; put it where every "
            f"machine sees it ({error})"
        ) from error


def _find(wanted: Facts, directory: Path) -> Path:
    """The folder of the weights: fetched, or made of their source again as they were made first."""
    from transformers import AutoConfig

    source = wanted["origin"]
    if "stored" in source:
        folder = fetch(location(source["stored"]))
    else:
        path = _resolve(source, directory)
        checkpoint = Checkpoint.read(path)
        recipe = Recipe(**wanted["recipe"] | {"drop_layers": tuple(wanted["recipe"]["drop_layers"])})
        folder = prepare(checkpoint, examine(checkpoint, AutoConfig.from_pretrained(path)), recipe).folder
    for file, facts in wanted["files"].items():
        if not (folder / file).exists() or known_sha256(folder / file) != facts["sha256"]:
            raise IntegrityError(
                f"{folder / file} is not the file that {directory} began with: {source} holds other weights now; put "
                f"the former ones back, or start a new run"
            )
    return folder
