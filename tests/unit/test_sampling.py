"""Completions drawn from a model under training: prompts of any length side by side, seeds, stop tokens, limits."""

from __future__ import annotations

import pytest
import torch

from proxykd.config import ModelConfig
from proxykd.models import load_scorer
from proxykd.sampling import sample_completions

PROMPTS = [[1, 40, 41, 42, 50, 51], [1, 60], [1, 33, 34]]
LIMITS = {"max_tokens": 6, "max_length": 64}


@pytest.fixture
def scorer(tiny):
    return load_scorer(tiny, ModelConfig(source=str(tiny), dtype="float32"), seed=1)


def sharpen(scorer, by=1e4):
    """Nearly all mass on one token, so that a draw is known beforehand."""
    with torch.no_grad():
        scorer.head().linear.weight.mul_(by)


def by_hand(scorer, prompt, tokens):
    ids = list(prompt)
    for _ in range(tokens):
        hidden = scorer._base().get_decoder()(input_ids=torch.tensor([ids])).last_hidden_state
        ids.append(int(scorer.head().logits(hidden[0, -1:]).argmax()))
    return ids[len(prompt) :]


def test_a_batch_of_prompts_of_different_lengths_is_drawn_as_each_alone(scorer):
    sharpen(scorer)
    drawn = sample_completions(scorer, PROMPTS, seed=3, **LIMITS)
    for prompt, completion in zip(PROMPTS, drawn, strict=True):
        expected = by_hand(scorer, prompt, 6)
        assert completion == expected[: expected.index(2) + 1] if 2 in expected else expected


def test_a_seed_decides_the_draw_and_leaves_the_global_state_alone(scorer):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    first, again, other = (sample_completions(scorer, PROMPTS, seed=seed, **LIMITS) for seed in (5, 5, 6))
    assert first == again != other
    assert torch.equal(torch.rand(1), expected)


def test_tokens_are_drawn_from_the_whole_distribution(scorer):
    """400 first tokens against the probabilities: a chi-square over the likeliest, the rest together."""
    drawn = sample_completions(scorer, [PROMPTS[1]] * 400, seed=9, **LIMITS | {"max_tokens": 1})
    hidden = scorer._base().get_decoder()(input_ids=torch.tensor([PROMPTS[1]])).last_hidden_state
    probabilities = scorer.head().logits(hidden[0, -1:]).softmax(-1)[0]
    values, ids = probabilities.topk(10)
    counts = [sum(completion[0] == token for completion in drawn) for token in ids.tolist()]
    observed, expected = [*counts, 400 - sum(counts)], [*(400 * values).tolist(), 400 * (1 - values.sum()).item()]
    chi_square = sum((o - e) ** 2 / e for o, e in zip(observed, expected, strict=True))
    assert chi_square < 29.6  # one in a thousand, 10 degrees of freedom


def test_a_completion_ends_with_its_stop_token_or_at_the_limit(scorer):
    sharpen(scorer)
    expected = by_hand(scorer, PROMPTS[0], 6)
    stop = expected[2]
    scorer.model.generation_config.eos_token_id = [2, stop]
    [completion] = sample_completions(scorer, PROMPTS[:1], seed=0, **LIMITS)
    assert completion == expected[: expected.index(stop) + 1]
    scorer.model.generation_config.eos_token_id = 2
    [short] = sample_completions(scorer, PROMPTS[:1], seed=0, **LIMITS | {"max_length": 8})
    assert short == expected[:2]
    assert sample_completions(scorer, [], seed=0, **LIMITS) == []
