"""Lengths of records like OpenOrca's in tokens, for benchmarks that need no text."""

from __future__ import annotations

import random
from typing import Any

MAX_LENGTH = 1024


def lengths(records: int, seed: int = 0, scale: float = 1.0) -> list[tuple[int, int, int]]:
    """Prompt, chosen and rejected of each record, independent log-normal lengths with sigma 0.9: prompts of 180 tokens
    in the median and 270 on average, completions of 120 and 180; what is longer than MAX_LENGTH is dropped. A prompt is
    then 0.6 of a record, and its pair with the prompt once 0.7 of one with the prompt twice. `scale` shortens all."""
    draw = random.Random(seed)

    def one(median: float) -> int:
        return max(2, round(scale * median * draw.lognormvariate(0.0, 0.9)))

    found: list[tuple[int, int, int]] = []
    while len(found) < records:
        prompt, chosen, rejected = one(180), one(120), one(120)
        if prompt + max(chosen, rejected) <= scale * MAX_LENGTH:
            found.append((prompt, chosen, rejected))
    return found


def rows(records: int, vocabulary: int, seed: int = 0, scale: float = 1.0) -> list[dict[str, Any]]:
    """Rows of pairs with random tokens; `length` is that of both sides behind one prompt."""
    draw = random.Random(seed)

    def ids(count: int) -> list[int]:
        return [draw.randrange(vocabulary) for _ in range(count)]

    return [
        {
            "index": index,
            "prompt_ids": ids(prompt),
            "completion_ids": ids(chosen),
            "rejected_ids": ids(rejected),
            "length": prompt + chosen + rejected,
        }
        for index, (prompt, chosen, rejected) in enumerate(lengths(records, seed, scale))
    ]
