"""Completions token by token: prompts side by side in one batch, drawn or by the likeliest token, with a cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from proxykd.models.scorer import CompletionScorer


class Decoding:
    """Prompts side by side, one token each at a time. `rows` are those that still go on.

    Ended rows leave the batch: they would cost as much as the others, and their positions would pass what the model
    was made for.
    """

    def __init__(
        self,
        scorer: CompletionScorer,
        prompts: Sequence[Sequence[int]],
        seed: int | None,
        temperature: float = 1.0,
    ):
        """Without a seed the likeliest token is taken, not drawn."""
        self.rows = list(range(len(prompts)))
        self._scorer = scorer
        self._device = next(scorer.parameters()).device
        self._temperature = temperature
        self._draws = None if seed is None else torch.Generator(self._device).manual_seed(seed)
        longest = max(map(len, prompts))
        # Left-padded, so that every row's next token is predicted at the same place; the mask hides the padding.
        self._ids_BT = self._tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        self._mask_BS = self._tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        self._cache: Any = None

    def next_tokens(self) -> list[int]:
        """A token of each row."""
        positions_BT = (self._mask_BS.cumsum(1) - 1).clamp(min=0)[:, -self._ids_BT.shape[1] :]
        logits_BV, self._cache = self._scorer.next_logits(self._ids_BT, self._mask_BS, positions_BT, self._cache)
        if self._draws is None:
            self._ids_BT = logits_BV.argmax(-1, keepdim=True)
        else:
            self._ids_BT = torch.multinomial((logits_BV / self._temperature).softmax(-1), 1, generator=self._draws)
        self._mask_BS = torch.cat([self._mask_BS, self._mask_BS.new_ones(len(self._mask_BS), 1)], 1)
        return list(map(int, self._ids_BT[:, 0].tolist()))

    def keep(self, rows: list[int]) -> None:
        if rows and len(rows) < len(self.rows):
            places = self._tensor([self.rows.index(row) for row in rows])
            self._ids_BT, self._mask_BS = self._ids_BT[places], self._mask_BS[places]
            self._cache.batch_select_indices(places)
        self.rows = rows

    def _tensor(self, values: list[Any]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._device)
