"""Which rows share a micro-batch, and the padded tensors of one.

A micro-batch plan depends on the rows of a global batch alone, not on the number of workers: workers take
micro-batches in turn, so that sharding changes neither a micro-batch's padding nor its numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # plans need no torch, and a look at them should not wait for it
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class CompletionBatch:
    """Right-padded sequences and where their completions lie, flattened (N completion tokens over B rows).

    Masked by length, never by a pad id (pad may equal the stop token). The last token of a row is not an input:
    nothing is predicted from it. Right padding needs no attention mask under causal attention.
    """

    input_ids_BT: Tensor
    positions_N: Tensor
    """Flat index into [B * T] of the position that predicts each completion token: the label shift."""
    labels_N: Tensor
    rows_N: Tensor
    rows: int

    @property
    def lengths_B(self) -> Tensor:
        import torch

        return torch.bincount(self.rows_N, minlength=self.rows)

    def to(self, device: torch.device) -> CompletionBatch:
        return CompletionBatch(
            self.input_ids_BT.to(device),
            self.positions_N.to(device),
            self.labels_N.to(device),
            self.rows_N.to(device),
            self.rows,
        )


def collate(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> CompletionBatch:
    """Pads B sequences to the longest. An empty completion contributes no tokens.

    Raises:
        ValueError: a prompt is empty.
    """
    import torch

    sequences = [list(p) + list(c) for p, c in zip(prompts, completions, strict=True)]
    if not all(len(p) for p in prompts):
        raise ValueError("a prompt without tokens: nothing predicts the first completion token")
    width = max(len(s) for s in sequences) - 1
    width = max(width, 1)
    input_ids = torch.zeros(len(sequences), width, dtype=torch.long)
    positions: list[int] = []
    labels: list[int] = []
    rows: list[int] = []
    for row, (prompt, sequence) in enumerate(zip(prompts, sequences, strict=True)):
        kept = sequence[:-1] if len(sequence) > len(prompt) else sequence[:width]
        input_ids[row, : len(kept)] = torch.tensor(kept, dtype=torch.long)
        start = row * width + len(prompt) - 1
        positions += range(start, start + len(sequence) - len(prompt))
        labels += sequence[len(prompt) :]
        rows += [row] * (len(sequence) - len(prompt))
    positions_N, labels_N, rows_N = (torch.tensor(values, dtype=torch.long) for values in (positions, labels, rows))
    return CompletionBatch(input_ids, positions_N, labels_N, rows_N, len(sequences))


def plan_micro_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Groups row indices so that rows * longest <= max_tokens (at least one row each), similar lengths together.

    Longest first: the largest micro-batch, which sets the peak of memory, comes first.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    plan: list[list[int]] = []
    for index in order:
        if plan and (len(plan[-1]) + 1) * lengths[plan[-1][0]] <= max_tokens:
            plan[-1].append(index)
        else:
            plan.append([index])
    return plan


def share_of_worker(plan: list[list[int]], rank: int, world: int) -> list[list[int]]:
    """This worker's micro-batches: every world-th. Empty lists pad the tail, so that all workers step equally often."""
    rounds = -(-len(plan) // world)
    padded = plan + [[] for _ in range(rounds * world - len(plan))]
    return padded[rank::world]
