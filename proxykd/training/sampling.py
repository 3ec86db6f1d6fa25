"""Completions drawn from a model under training, where it stands; and how long any sampled completion may be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from proxykd.models.decoding import Decoding
from proxykd.models.loading import stop_token_ids
from proxykd.models.scorer import CompletionScorer
from proxykd.text.corpus import Row
from proxykd.text.seeds import sample_seed
from proxykd.training.worker import Worker


@dataclass(frozen=True)
class Room:
    """How many tokens a sampled completion may have, its stop token included: what its own prompt leaves of
    `max_length`, and no more than `max_new_tokens` where that is set."""

    max_length: int
    max_new_tokens: int | None = None

    def of(self, prompt: Sequence[int]) -> int:
        """Returns how many tokens a completion of this prompt may have.

        Raises:
            ValueError: the prompt leaves none. A run's corpus has no such record.
        """
        left = self.max_length - len(prompt)
        if left < 1:
            raise ValueError(f"a prompt of {len(prompt)} tokens leaves no room within max_length {self.max_length}")
        return left if self.max_new_tokens is None else min(left, self.max_new_tokens)


@torch.no_grad()
def sample_completions(
    scorer: CompletionScorer, prompts: Sequence[Sequence[int]], room: Room, seed: int
) -> list[list[int]]:
    """One completion a prompt, with its stop token unless it ran out of its room.

    Drawn at temperature 1 from the whole distribution that the scorer's own log-probs describe; of the model's
    generation_config only the stop tokens count, any of which ends a completion, as in the engine. The same seed
    draws the same, whatever was drawn before; the global random state stays as it is.
    """
    return _completions(scorer, prompts, [room.of(prompt) for prompt in prompts], seed)


@torch.no_grad()
def greedy_completions(
    scorer: CompletionScorer, prompts: Sequence[Sequence[int]], rooms: Sequence[int]
) -> list[list[int]]:
    """The same by the likeliest token at each place, each within its own `rooms` tokens."""
    return _completions(scorer, prompts, rooms, None)


def _completions(
    scorer: CompletionScorer, prompts: Sequence[Sequence[int]], rooms: Sequence[int], seed: int | None
) -> list[list[int]]:
    if not prompts:
        return []
    stops = set(stop_token_ids(scorer.model))
    drawn: list[list[int]] = [[] for _ in prompts]
    with _evaluating(scorer):
        decoding = Decoding(scorer, prompts, seed)
        while decoding.rows:
            for row, token_id in zip(decoding.rows, decoding.next_tokens(), strict=True):
                drawn[row].append(token_id)
            decoding.keep(
                [row for row in decoding.rows if drawn[row][-1] not in stops and len(drawn[row]) < rooms[row]]
            )
    return drawn


def sample_rows(
    worker: Worker, scorer: CompletionScorer, rows: list[Row], max_new_tokens: int | None, step: int
) -> list[Row]:
    """A global batch with completions that `scorer` draws now, before this step, in the place of its own.

    Every worker must call it: each draws its share, and all have the same rows. Run seed, step and number of workers
    decide the draw, so that a stage that goes on after a death draws the same again.
    """
    workers, config = worker.workers, worker.config
    drawn = sample_completions(
        scorer,
        [row["prompt_ids"] for row in rows[workers.rank :: workers.world]],
        Room(config.corpus.max_length, max_new_tokens),
        sample_seed(config.seed, step, f"worker {workers.rank}"),
    )
    found = list(rows)
    for rank, completions in enumerate(workers.gather_objects(drawn)):
        for at, ids in zip(range(rank, len(rows), workers.world), completions, strict=True):
            found[at] = {**rows[at], "completion_ids": ids, "length": len(rows[at]["prompt_ids"]) + len(ids)}
    return found


@contextmanager
def _evaluating(scorer: nn.Module) -> Iterator[None]:
    """Without dropout, and with the cache that a layer in training recomputes instead of keeping."""
    training = [module for module in scorer.modules() if module.training]
    scorer.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
