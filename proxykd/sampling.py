"""Completions drawn from a model under training, where it stands: for on-policy baselines."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from proxykd.models import stop_token_ids
from proxykd.scorer import CompletionScorer


@torch.no_grad()
def sample_completions(
    scorer: CompletionScorer,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    max_length: int,
    seed: int,
) -> list[list[int]]:
    """One completion a prompt, at temperature 1 from the whole vocabulary; with its stop token unless it ran out.

    Any of the model's stop tokens ends it, as in the engine.

    The same seed draws the same, whatever was drawn before; the global random state stays as it is.
    """
    from transformers import GenerationConfig

    if not prompts:
        return []
    device = next(scorer.parameters()).device
    longest = max(map(len, prompts))
    stops = stop_token_ids(scorer.model)
    padded = [[stops[0]] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    settings = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=max(1, min(max_tokens, max_length - longest)),
        eos_token_id=stops,
        pad_token_id=stops[0],
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        drawn = scorer.model.generate(
            input_ids=torch.tensor(padded, device=device),
            attention_mask=torch.tensor(mask, device=device),
            generation_config=settings,
        )
    return [_until_stop(ids, stops) for ids in drawn[:, longest:].tolist()]


def _until_stop(ids: list[int], stops: list[int]) -> list[int]:
    end = next((at for at, token_id in enumerate(ids, 1) if token_id in stops), len(ids))
    return ids[:end]
