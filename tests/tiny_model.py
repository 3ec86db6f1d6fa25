"""A tiny random-weight Llama with a small ChatML tokenizer, made on the spot: for tests of the real parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WORDS = [
    "the",
    "a",
    "one",
    "two",
    "three",
    "red",
    "blue",
    "green",
    "cat",
    "dog",
    "tree",
    "house",
    "sun",
    "moon",
    "river",
    "stone",
    "light",
    "dark",
    "small",
    "large",
]


def make_tokenizer() -> Any:
    """320 tokens; pad is the stop token, as in SmolLM2."""
    return bpe_tokenizer(("<|endoftext|>", "<|im_start|>", "<|im_end|>"), CHATML, "<|im_end|>")


def bpe_tokenizer(special: tuple[str, ...], template: str, eos: str, bos: str | None = None) -> Any:
    """Byte-level BPE over a few words, with a family's special tokens and chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=bos, eos_token=eos, pad_token=eos)
    tokenizer.chat_template = template
    return tokenizer


def make_model(directory: Path, seed: int = 0, layers: int = 4, hidden: int = 64) -> Path:
    """Writes the model with weights large enough that its distributions are not flat."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.15,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).to(torch.float32).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def prompts(count: int) -> list[dict[str, str]]:
    """Distinct prompts of a few words."""
    return [
        {"id": f"p{i:04d}", "prompt": f"{WORDS[i % 20]} {WORDS[(i // 20) % 20]} {WORDS[(7 * i) % 20]}?"}
        for i in range(count)
    ]


def corpus_rows(count: int) -> list[dict[str, str]]:
    return [{**p, "completion": f"{WORDS[i % 20]} {WORDS[(3 * i) % 20]}."} for i, p in enumerate(prompts(count))]
