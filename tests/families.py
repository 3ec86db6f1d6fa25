"""Tiny random-weight models of the families that people distil, each with its family's quirks of template and head; and
what a run on one of them shows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import read_json, read_table
from proxykd.text.tokenizer import load_tokenizer
from tests.tiny_model import bpe_tokenizer

LLAMA = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] "
    "| trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
QWEN2 = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{% endif %}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN3 = (
    "{% for m in messages %}{% if m['role'] == 'assistant' and loop.last %}"
    "{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n' + m['content'] + '<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
MISTRAL = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] + '\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}{{ bos_token }}"
    "{% for m in turns %}{% if m['role'] == 'user' %}{{ '[INST] ' + system + m['content'] + '[/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' "
    "+ m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PHI = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """`stop` ends a turn of the template, `eos` is the tokenizer's end of a text; `padded` rows stand for no token."""

    architecture: str
    template: str
    special: tuple[str, ...]
    bos: str | None
    eos: str
    stop: str
    settings: tuple[tuple[str, Any], ...] = ()
    padded: int = 0


CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
FAMILIES = {
    "llama": Family(
        "Llama", LLAMA, ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", (("tie_word_embeddings", True),),
    ),
    "qwen2": Family(
        "Qwen2", QWEN2, CHATML, None, "<|im_end|>", "<|im_end|>", (("tie_word_embeddings", True),), padded=37,
    ),
    "qwen3": Family(
        "Qwen3", QWEN3, (*CHATML, "<think>", "</think>"), None, "<|im_end|>", "<|im_end|>", (("head_dim", 32),), padded=5,
    ),
    "mistral": Family(
        "Mistral", MISTRAL, ("<s>", "</s>", "[INST]", "[/INST]"), "<s>", "</s>", "</s>", (("sliding_window", None),),
    ),
    "gemma2": Family(
        "Gemma2", GEMMA, ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"), "<bos>", "<eos>", "<end_of_turn>",
        (("head_dim", 32), ("final_logit_softcapping", 3.0), ("attn_logit_softcapping", 20.0),
         ("query_pre_attn_scalar", 32), ("sliding_window", 64), ("tie_word_embeddings", True)),
    ),
    "gemma3": Family(
        "Gemma3Text", GEMMA, ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"), "<bos>", "<eos>",
        "<end_of_turn>",
        (("head_dim", 32), ("query_pre_attn_scalar", 32), ("sliding_window", 64), ("tie_word_embeddings", True)),
    ),
    "phi3": Family(
        "Phi3", PHI, ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"), None, "<|endoftext|>",
        "<|end|>", (("resid_pdrop", 0.25), ("embd_pdrop", 0.25)),
    ),
}  # fmt: skip


def make(name: str, directory: Path, layers: int = 3) -> Path:
    """Writes a model of the family with its tokenizer, as its makers publish theirs."""
    import torch
    import transformers

    family = FAMILIES[name]
    tokenizer = bpe_tokenizer(family.special, family.template, family.eos, family.bos)
    ids = {role: tokenizer.convert_tokens_to_ids(token) for role, token in (("eos", family.eos), ("stop", family.stop))}
    config = getattr(transformers, f"{family.architecture}Config")(
        vocab_size=len(tokenizer) + family.padded,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        initializer_range=0.15,
        attention_dropout=0.25,
        bos_token_id=0,
        eos_token_id=ids["eos"],
        pad_token_id=ids["eos"],
        **dict(family.settings),
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{family.architecture}ForCausalLM".replace("TextForCausalLM", "ForCausalLM"))(config)
    model.to(torch.float32).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def check_run(run: RunDirectory) -> None:
    """A finished run of one round: engine and trainer agree, samples end where the family's do, the student learns."""
    report = read_json(run.report)
    [only] = report["rounds"]
    assert only["parity_max_abs"] < 1e-3
    assert only["step0_margin_max_abs"] == 0.0
    pairs = read_table(next(run.pairs(1).glob("*.parquet"))).to_pylist()
    stops = read_json(run.models / "proxy" / "generation_config.json")["eos_token_id"]
    assert all((pair["rejected_ids"][-1] in stops) == pair["rejected_stopped"] for pair in pairs)
    assert max(max(pair["rejected_ids"]) for pair in pairs) < len(load_tokenizer(run.student))
    assert report["student"]["after"]["held_out_nll"] < report["student"]["before"]["held_out_nll"]
