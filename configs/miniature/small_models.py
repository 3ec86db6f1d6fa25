"""What the made-up worlds share: words drawn by a voice's tables, and small models trained on what voices say."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""GPT-2's."""
BATCH = 48
"""Texts of a training step."""
Batch = Callable[[random.Random, int], list[tuple[str, str]]]
"""So many fresh prompts, each with a completion."""


@dataclass(frozen=True)
class Shape:
    """A model's size, and how many steps it trains for."""

    layers: int
    hidden: int
    steps: int


def weights(voice: str, place: str, context: Sequence[str], options: int) -> list[float]:
    """A voice's probabilities of a place's options in a context: a Dirichlet draw (concentration 0.35), always the
    same. A voice of another world than the first has that one's name before its own."""
    seed = hashlib.sha256("|".join((voice, place, *context)).encode()).digest()
    drawn = random.Random(seed)
    raw = [drawn.gammavariate(0.35, 1.0) + 1e-4 for _ in range(options)]
    return [value / sum(raw) for value in raw]


def make_tokenizer(texts: list[str], pieces: str = WORDS, size: int = 640) -> Any:
    """A byte-level BPE of the texts, of so many tokens, which never reach beyond a match of the pattern `pieces`."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pieces), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|im_end|>")
    tokenizer.chat_template = CHATML
    return tokenizer


def train(name: str, shape: Shape, batch: Batch, tokenizer: Any, folder: Path) -> None:
    """From random weights on fresh text in every batch, into folder/name."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from proxykd.models.batching import collate
    from proxykd.models.scorer import CompletionScorer
    from proxykd.text.chat import ChatFormat

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        intermediate_size=3 * shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.hidden // 32,
        num_key_value_heads=shape.hidden // 32,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    model = LlamaForCausalLM(config)
    scorer, chat = CompletionScorer(model, len(tokenizer)), ChatFormat(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=shape.steps)
    chance = random.Random(name)
    for step in range(shape.steps):
        asked, said = zip(*batch(chance, BATCH), strict=True)
        prompts = [chat.prompt_ids(({"role": "user", "content": prompt},)) for prompt in asked]
        loss = -scorer(collate(prompts, [chat.completion_ids(text) for text in said])).token_logps_N.mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 200 == 0 or step + 1 == shape.steps:
            print(f"{name}: step {step + 1} of {shape.steps}, {loss.item():.3f} nats a token", flush=True)
    model.save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / name)
