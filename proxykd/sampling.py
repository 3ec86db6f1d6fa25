"""Completions drawn from a model under training, where it stands: for on-policy baselines."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from proxykd.scorer import CompletionScorer


@torch.no_grad()
def sample_completions(
    scorer: CompletionScorer,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    max_length: int,
    stop_token_id: int,
    seed: int,
) -> list[list[int]]:
    """One completion a prompt, at temperature 1 from the whole vocabulary; with its stop token unless it ran out.

    The same seed draws the same, whatever was drawn before; the global random state stays as it is.
    """
    from transformers import GenerationConfig

    if not prompts:
        return []
    device = next(scorer.parameters()).device
    longest = max(map(len, prompts))
    padded = [[stop_token_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    width = scorer.head().linear.weight.shape[0]
    settings = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=max(1, min(max_tokens, max_length - longest)),
        eos_token_id=stop_token_id,
        pad_token_id=stop_token_id,
        suppress_tokens=list(range(scorer.vocabulary, width)) or None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        drawn = scorer.model.generate(
            input_ids=torch.tensor(padded, device=device),
            attention_mask=torch.tensor(mask, device=device),
            generation_config=settings,
        )
    return [_until_stop(ids, stop_token_id) for ids in drawn[:, longest:].tolist()]


def _until_stop(ids: list[int], stop_token_id: int) -> list[int]:
    return ids[: ids.index(stop_token_id) + 1] if stop_token_id in ids else ids
