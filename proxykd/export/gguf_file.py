"""GGUF, the file of llama.cpp and Ollama: a Hugging Face folder's weights, tokenizer and chat template in one.

Names, types and quantisation are the `gguf` package's. What is ours is what llama.cpp wants otherwise than
transformers: for Llama and Mistral the rows of the query's and key's projections in the order of its rotations; Llama
3's scaled rotations as a tensor of factors; and the name of the pre-tokenizer, which the file carries in place of it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from proxykd.errors import ModelError

Weights = Literal["f32", "f16", "q8_0"]
ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_2 = LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
PRE_TOKENIZERS = {
    ("ByteLevel",): "gpt-2",
    ("Digits", "ByteLevel"): "smollm",
    (LLAMA_3, "ByteLevel"): "llama-bpe",
    (QWEN_2, "ByteLevel"): "qwen2",
}
"""llama.cpp's name of a pre-tokenizer, by its steps: types, or the pattern that splits."""


def write_gguf(folder: Path, target: Path, weights: Weights, name: str) -> None:
    """Writes `target` from a folder in Hugging Face format.

    Raises:
        ModelError: a family, tokenizer or rotation that the format is not written for here, by its name.
    """
    from gguf import GGUFWriter

    config = json.loads((folder / "config.json").read_text())
    family = (config.get("architectures") or ["?"])[0]
    if family not in ARCHITECTURES:
        raise ModelError(
            f"GGUF is written for {', '.join(ARCHITECTURES)}, not for {family}; export safetensors, and convert them "
            f"by llama.cpp's own script"
        )
    writer = GGUFWriter(str(target), ARCHITECTURES[family])
    writer.add_name(name)
    _add_shape(writer, config, weights)
    _add_tokenizer(writer, folder, config)
    for tensor_name, tensor in _tensors(folder, config, ARCHITECTURES[family]):
        data, kind = _stored(tensor, weights)
        writer.add_tensor(tensor_name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_shape(writer: Any, config: dict[str, Any], weights: Weights) -> None:
    from gguf import LlamaFileType

    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(_rope(config)["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(
        {"f32": LlamaFileType.ALL_F32, "f16": LlamaFileType.MOSTLY_F16, "q8_0": LlamaFileType.MOSTLY_Q8_0}[weights]
    )


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """The rotations' settings, of transformers 5's configs and of earlier ones."""
    found = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    found.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    kind = found.get("rope_type", found.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise ModelError(f"GGUF is not written here for rotations of type {kind!r}; export safetensors")
    return found | {"rope_type": kind}


def _add_tokenizer(writer: Any, folder: Path, config: dict[str, Any]) -> None:
    from gguf import SpecialVocab, TokenType

    raw = json.loads((folder / "tokenizer.json").read_text())
    if raw["model"]["type"] != "BPE" or raw["model"].get("byte_fallback"):
        raise ModelError("GGUF is written here for byte-level BPE alone; export safetensors")
    tokens = [f"[PAD{number}]" for number in range(config["vocab_size"])]
    kinds = [TokenType.UNUSED] * len(tokens)
    for token, token_id in raw["model"]["vocab"].items():
        tokens[token_id], kinds[token_id] = token, TokenType.NORMAL
    for added in raw["added_tokens"]:
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_pre_tokenizer(raw))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    SpecialVocab(folder, load_merges=True, n_vocab=len(tokens)).add_to_gguf(writer, quiet=True)


def _pre_tokenizer(raw: dict[str, Any]) -> str:
    found = raw["pre_tokenizer"] or {"type": "none"}
    steps = found["pretokenizers"] if found["type"] == "Sequence" else [found]
    key = tuple(step["pattern"]["Regex"] if step["type"] == "Split" else step["type"] for step in steps)
    if key not in PRE_TOKENIZERS:
        raise ModelError(f"llama.cpp's name of the pre-tokenizer {key} is not known here; export safetensors")
    return PRE_TOKENIZERS[key]


def _tensors(folder: Path, config: dict[str, Any], architecture: str) -> Iterator[tuple[str, Tensor]]:
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map
    from safetensors import safe_open

    [arch] = [one for one in MODEL_ARCH if MODEL_ARCH_NAMES[one] == architecture]
    names = get_tensor_name_map(arch, config["num_hidden_layers"])
    rope = _rope(config)
    if rope["rope_type"] == "llama3":
        yield "rope_freqs.weight", llama3_factors(rope, config)
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                if name == "lm_head.weight" and config.get("tie_word_embeddings"):
                    continue
                theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
                if theirs is None:
                    raise ModelError(f"{path.name}: GGUF has no place for {name}")
                tensor = file.get_tensor(name).float()
                if architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
                    key = "num_attention_heads" if "q_proj" in name else "num_key_value_heads"
                    tensor = by_pairs(tensor, config.get(key) or config["num_attention_heads"])
                yield theirs, tensor


def by_pairs(weight: Tensor, heads: int) -> Tensor:
    """Rows [heads * d, H] in the order in which llama.cpp's Llama rotates them: neighbours 2i and 2i + 1, where
    transformers rotates i and i + d / 2."""
    by_heads: Tensor = weight.unflatten(0, (heads, 2, -1))
    return by_heads.transpose(1, 2).reshape(weight.shape)


def llama3_factors(rope: dict[str, Any], config: dict[str, Any]) -> Tensor:
    """By which Llama 3's scaled rotations divide each frequency (transformers, modeling_rope_utils)."""
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    low, high, old = rope["low_freq_factor"], rope["high_freq_factor"], rope["original_max_position_embeddings"]
    wavelengths = 2 * math.pi * rope["rope_theta"] ** (torch.arange(0, head_dim, 2).double() / head_dim)
    smooth = ((old / wavelengths - low) / (high - low)).clamp(0, 1)
    factors: Tensor = 1 / ((1 - smooth) / rope["factor"] + smooth)
    return factors.float()


def _stored(tensor: Tensor, weights: Weights) -> tuple[np.ndarray, Any]:
    """As the file has it. Vectors stay in float32, and so does what a quantisation has no blocks for in float16."""
    from gguf import GGMLQuantizationType, quants

    array = tensor.numpy()
    if array.ndim == 1 or weights == "f32":
        return array, GGMLQuantizationType.F32
    if weights == "q8_0" and array.shape[-1] % 32 == 0:
        return quants.quantize(array, GGMLQuantizationType.Q8_0), GGMLQuantizationType.Q8_0
    return array.astype(np.float16), GGMLQuantizationType.F16
