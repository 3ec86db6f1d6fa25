"""Models: what a run starts from, how they are read, how adapters are put on, read, written and merged."""

from __future__ import annotations

import gc
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from proxykd.config import LoraConfig, ModelConfig
from proxykd.errors import IntegrityError, ModelError
from proxykd.models.checkpoint_files import Checkpoint, examine, require_whole
from proxykd.models.merging import copy_texts, write_merged
from proxykd.models.model_sources import origin, require_texts, resolve
from proxykd.models.run_models import local_model, place
from proxykd.models.scorer import CompletionScorer
from proxykd.models.weights import Recipe, prepare, prune
from proxykd.runs.links import known_sha256
from proxykd.runs.storage import READY, fetch, publish_directory, sha256_file, verify_directory
from proxykd.text.chat import ChatFormat
from proxykd.text.tokenizer import load_tokenizer, read_tokenizer, require_same_tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def initialise(config: ModelConfig, directory: Path, proxy: Path | None = None, thinking: bool = False) -> Path:
    """The model a run starts from: the source, pruned where the config says so. No model is loaded for it.

    Embeddings that stand for no token are cut, so that every part of a run has the same distribution over tokens.
    With `proxy`, the folder of the run's proxy, it speaks as that: the same tokenizer, template and stop tokens, in
    which it will be taught; without, `thinking` keeps its own template's room for thoughts. Returns `directory`; done
    once, verified by its manifest.

    Raises:
        ModelError: what the source lacks, with the file's name.
    """
    if (directory / READY).exists():
        return directory
    from transformers import AutoConfig

    source = resolve(config.source)
    require_texts(source)
    whole = Checkpoint.read(source)
    if proxy is None:
        tokenizer = load_tokenizer(source, config.chat_template, config.template_date, thinking)
    else:
        tokenizer = load_tokenizer(proxy)
    require_dense(tokenizer, source)
    settings = AutoConfig.from_pretrained(source)
    generation = _own_generation(tokenizer, source, settings) if proxy is None else _generation_of(proxy)
    recipe = Recipe(config.drop_layers, len(tokenizer), config.dtype)
    weights = prepare(whole, examine(whole, settings), recipe)
    prune(settings, config.drop_layers)
    settings.get_text_config().vocab_size = len(tokenizer)
    settings.dtype = config.dtype
    model = examine(weights, settings)
    model.config.architectures = [type(model).__name__]
    model.config.eos_token_id = generation.eos_token_id

    def build(target: Path) -> dict[str, Any]:
        model.config.save_pretrained(target)
        generation.save_pretrained(target)
        tokenizer.save_pretrained(target)
        return {
            "source": config.source,
            "drop_layers": list(config.drop_layers),
            "parameters": sum(p.numel() for p in model.parameters()),
            "weights": place(weights, origin(config.source, source), recipe, directory, target),
        }

    publish_directory(directory, build, known_sha256)
    return directory


def require_one_vocabulary(models: dict[str, ModelConfig]) -> None:
    """Compares the sources' own tokenizers, before any weights are fetched.

    Raises:
        ModelError: one differs from the proxy's.
    """
    folders = {name: resolve(model.source, weights=False) for name, model in models.items()}
    for folder in folders.values():
        require_texts(folder)
    tokenizers = {name: read_tokenizer(folder) for name, folder in folders.items()}
    for name, tokenizer in tokenizers.items():
        if models[name].tokenizer == "proxy":
            require_same_tokenizer(tokenizers["proxy"], tokenizer, name)


def require_dense(tokenizer: Any, source: Path) -> None:
    """Raises ModelError where an id below the vocabulary's size stands for no token."""
    ids = set(tokenizer.get_vocab().values())
    if holes := sorted(set(range(max(ids) + 1)) - ids):
        raise ModelError(
            f"{source / 'tokenizer.json'} has holes: of the ids up to {max(ids)}, {len(holes)} stand for no token "
            f"(first {holes[0]}); name tokens for them under added_tokens"
        )


def _own_generation(tokenizer: Any, source: Path, settings: Any) -> Any:
    """How the source ends a generation, the template's stop token first. None of its settings for sampling: nobody of
    the run was taught them."""
    from transformers import GenerationConfig

    if (source / "generation_config.json").exists():
        known = GenerationConfig.from_pretrained(source)
    else:
        known = GenerationConfig.from_model_config(settings)
    stop = ChatFormat(tokenizer).stop_token_id
    stops = [stop, *(other for other in _listed(known.eos_token_id) if other != stop)]
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=stops, pad_token_id=tokenizer.pad_token_id
    )


def _generation_of(proxy: Path) -> Any:
    from transformers import GenerationConfig

    return GenerationConfig.from_pretrained(fetch(proxy))


def read_model(directory: Path, dtype: torch.dtype) -> Any:
    """A causal language model from a folder's safetensors, with attention that computes all of its config.

    Without dropout: policy and reference must agree to the last bit.

    Raises:
        ModelError: a tensor that the weights lack: transformers would take random values for it.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(directory)
    _without_dropout(config)
    options = {}
    if getattr(config.get_text_config(), "attn_logit_softcapping", None):  # torch's own attention leaves it out
        options["attn_implementation"] = "eager"
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        directory, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
    )
    model, info = loaded
    require_whole(info, directory)
    return model


def _without_dropout(config: Any) -> None:
    """Sets attention_dropout, resid_pdrop, layerdrop and the like to 0, in a config and in the configs in it."""
    for name, value in list(vars(config).items()):
        if hasattr(value, "model_type"):
            _without_dropout(value)
        elif "drop" in name and isinstance(value, int | float) and not isinstance(value, bool):
            setattr(config, name, 0.0)


def stop_token_ids(model: Any) -> list[int]:
    """The tokens that end a generation of `model`: those of its turns first."""
    return _listed(model.generation_config.eos_token_id)


def _listed(ids: int | list[int] | None) -> list[int]:
    return ids if isinstance(ids, list) else [] if ids is None else [ids]


def load_scorer(
    base: Path, config: ModelConfig, *, adapter: Path | None = None, seed: int = 0, trainable: bool = True
) -> CompletionScorer:
    """The base in its own dtype with float32 LoRA weights on every linear layer (`method: lora`), or alone.

    `adapter` gives the LoRA weights to start from; without it they are fresh (B = 0: the base itself).

    Raises:
        ModelError: fewer embeddings than the tokenizer has tokens, or an adapter for a model of `method: full`.
    """
    base = local_model(base)
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
    """Publishes base + adapter as an ordinary checkpoint, as `write_adapted` writes it; nothing where it is there."""
    if (target / READY).exists():
        return target

    def build(directory: Path) -> dict[str, Any]:
        write_adapted(base, adapter, directory, dtype)
        return {"base": str(base), "adapter": adapter.name if adapter else None}

    publish_directory(target, build)
    return target


def write_adapted(base: Path, adapter: Path | None, directory: Path, dtype: str) -> None:
    """Writes base + adapter as an ordinary checkpoint. Merged in float32 (bfloat16 drops small deltas), then cast.

    Tensor by tensor, in the base's own files: the process needs memory for a few of the largest tensors. A mixture of
    experts that are fused when they are loaded is merged in memory, all of it.

    Raises:
        IntegrityError: the adapter is not what its manifest says, or does not fit the base.
    """
    local = None if adapter is None else fetch(adapter)
    if local is not None:
        verify_directory(local)
    folder = local_model(base)
    if not write_merged(folder, local, directory, DTYPES[dtype]):
        from peft import PeftModel

        merged = PeftModel.from_pretrained(read_model(folder, torch.float32), str(local)).merge_and_unload()
        save_model(merged.to(DTYPES[dtype]), folder, directory)
    gc.collect()


def save_model(model: Any, base: Path, directory: Path, state: dict[str, Tensor] | None = None) -> None:
    """An ordinary Hugging Face checkpoint of `model`, ready for transformers and vLLM, that speaks as its base does.

    Beside the weights themselves the process needs memory for one file of them.
    """
    model.save_pretrained(directory, state_dict=state, max_shard_size="5GB")
    copy_texts(local_model(base), directory, model.dtype)
