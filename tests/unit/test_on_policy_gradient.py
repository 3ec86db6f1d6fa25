"""The gradient of learning on one's own samples, against all sequences of a tiny vocabulary: it is that of the divergence
at each prefix, weighted by how likely the student is to come there."""

from __future__ import annotations

import math
from collections import Counter
from itertools import product

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from proxykd.losses.divergences import Divergence
from proxykd.models.scorer import CompletionScorer
from proxykd.training.sampling import Room, sample_completions
from proxykd.training.stage_losses import DenseLoss

VOCABULARY, LONGEST, STOP = 4, 3, 3
PROMPT = [0, 1]
DRAWN = 6000


def model(seed):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        initializer_range=0.7,
        eos_token_id=STOP,
        bos_token_id=0,
        pad_token_id=0,
    )
    return CompletionScorer(LlamaForCausalLM(config).eval(), VOCABULARY)


@pytest.fixture
def student():
    return model(1)


@pytest.fixture
def teacher():
    return model(2).requires_grad_(False)


def logps(scorer, prefix):
    """After a prefix, over the vocabulary, in float64: the whole model, without the batch's ways."""
    return scorer.model(input_ids=torch.tensor([[*PROMPT, *prefix]])).logits[0, -1].double().log_softmax(-1)


def completions():
    """Every one that may be drawn: ended by the stop token, or by length."""
    for length in range(1, LONGEST + 1):
        for ids in product(range(VOCABULARY), repeat=length):
            if STOP not in ids[:-1] and (ids[-1] == STOP or length == LONGEST):
                yield ids


def prefixes():
    """Every one at which a token is drawn."""
    return [ids for length in range(LONGEST) for ids in product(range(STOP), repeat=length)]


def probability(student, ids):
    return math.exp(sum(float(logps(student, ids[:i])[token]) for i, token in enumerate(ids)))


DIVERGENCES = {
    "forward_kl": lambda p, q: sum(p[i].exp() * (p[i] - q[i]) for i in range(VOCABULARY)),
    "reverse_kl": lambda p, q: sum(q[i].exp() * (q[i] - p[i]) for i in range(VOCABULARY)),
    "jsd": lambda p, q: sum(
        one[i].exp() * (one[i] - ((p[i].exp() + q[i].exp()) / 2).log()) / 2 for one in (p, q) for i in range(VOCABULARY)
    ),
}


def gradient(scorer, value):
    scorer.zero_grad()
    value.backward()
    return torch.cat([p.grad.flatten().double() for p in scorer.parameters() if p.grad is not None])


def by_prefix(student, teacher, name):
    """sum over prefixes of q(prefix) * grad D, the prefix's probability held still."""
    terms = [
        probability(student, prefix) * DIVERGENCES[name](logps(teacher, prefix), logps(student, prefix))
        for prefix in prefixes()
    ]
    return gradient(student, torch.stack(terms).sum())


def of_sample(student, teacher, name, ids):
    """What a step on this one sample follows, before its tokens divide it."""
    row = {"prompt_ids": PROMPT, "completion_ids": list(ids)}
    loss = DenseLoss([row], teacher, Divergence(name))
    terms, _ = loss(student, [row])
    return gradient(student, terms["divergence"] * len(ids))


def test_all_completions_together_have_probability_one(student):
    assert len(list(completions())) == 1 + 3 + 9 * VOCABULARY
    assert sum(probability(student, ids) for ids in completions()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_its_expectation_over_all_completions_is_the_divergence_at_each_prefix(student, teacher, name):
    expected = by_prefix(student, teacher, name)
    found = sum(probability(student, ids) * of_sample(student, teacher, name, ids) for ids in completions())
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_the_samplers_own_draws_average_to_it(student, teacher):
    """Each parameter's mean over the draws within five of its standard errors."""
    drawn = sample_completions(student, [PROMPT] * DRAWN, Room(len(PROMPT) + LONGEST), seed=5)
    counts = Counter(map(tuple, drawn))
    assert set(counts) <= set(completions())
    parts = torch.stack([of_sample(student, teacher, "reverse_kl", ids) for ids in counts])
    weights = torch.tensor([count / DRAWN for count in counts.values()], dtype=torch.float64)[:, None]
    mean = (weights * parts).sum(0)
    error = ((weights * (parts - mean) ** 2).sum(0) / DRAWN).sqrt()
    expected = by_prefix(student, teacher, "reverse_kl")
    assert ((mean - expected).abs() <= 5 * error + 1e-7).all()
    assert float(error.max()) < 0.1 * float(expected.abs().max())


def test_it_is_not_the_gradient_of_the_kl_between_whole_completions(student, teacher):
    """That one moves the prefixes' probabilities too: KL(q(y) to p(y)), the sum over prefixes with nothing held still."""
    whole = torch.stack(
        [
            sum(
                (logps(student, prefix[:i])[token] for i, token in enumerate(prefix)),
                torch.zeros((), dtype=torch.float64),
            ).exp()
            * DIVERGENCES["reverse_kl"](logps(teacher, prefix), logps(student, prefix))
            for prefix in prefixes()
        ]
    ).sum()
    direct = sum(
        probability(student, ids) * (math.log(probability(student, ids)) - math.log(probability(teacher, ids)))
        for ids in completions()
    )
    assert float(whole) == pytest.approx(direct, rel=1e-5)
    theirs, ours = gradient(student, whole), by_prefix(student, teacher, "reverse_kl")
    assert float((theirs - ours).norm()) > 0.1 * float(theirs.norm())
