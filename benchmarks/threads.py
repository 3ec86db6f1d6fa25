"""One training step of small models by one thread and by every core: what `resources.trainer_threads: 1` gives up.

    python benchmarks/threads.py [--records 16] [--tokens 45] [--steps 40]

Each model takes the two in turn, three times; the median of the rounds' means is given.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from typing import Any

SHAPES = ((2, 64), (3, 128), (4, 160), (6, 384))
"""Layers and hidden size; the first three are the miniature study's student, proxy and teacher."""
VOCABULARY = 640
ROUNDS = 3


def build(layers: int, hidden: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=hidden,
            intermediate_size=3 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 32,
            num_key_value_heads=hidden // 32,
            tie_word_embeddings=True,
        )
    )


def step_ms(model: Any, optimizer: Any, ids: Any, steps: int) -> float:
    began = time.perf_counter()
    for _ in range(steps):
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return (time.perf_counter() - began) / steps * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=45)
    parser.add_argument("--steps", type=int, default=40)
    arguments = parser.parse_args()
    import torch

    torch.manual_seed(0)
    cores = len(os.sched_getaffinity(0))
    print(f"{arguments.records} records of {arguments.tokens} tokens, {cores} cores; milliseconds a step")
    print(f"{'layers x hidden':>16} {'parameters':>11} {'1 thread':>9} {f'{cores} threads':>10}")
    for layers, hidden in SHAPES:
        model = build(layers, hidden)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        ids = torch.randint(VOCABULARY, (arguments.records, arguments.tokens))
        times: dict[int, list[float]] = {1: [], cores: []}
        for _ in range(ROUNDS):
            for threads, measured in times.items():
                torch.set_num_threads(threads)
                step_ms(model, optimizer, ids, 3)
                measured.append(step_ms(model, optimizer, ids, arguments.steps))
        one, every = (statistics.median(measured) for measured in times.values())
        print(
            f"{f'{layers} x {hidden}':>16} {sum(p.numel() for p in model.parameters()):>11,} {one:>9.1f} {every:>10.1f}"
        )


if __name__ == "__main__":
    main()
