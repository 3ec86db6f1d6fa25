"""The gradient of learning on one's own samples, against all sequences of a tiny vocabulary: it is that of the divergence
at each prefix, weighted by how likely the student is to come there."""

from __future__ import annotations

import math
from collections import Counter
from itertools import product

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from proxykd.losses.coarse import coarse_divergence, with_token
from proxykd.losses.divergences import DENSE_DIVERGENCES, Divergence
from proxykd.losses.top_k import TopK
from proxykd.models.scorer import CompletionScorer
from proxykd.training.sampling import Room, sample_completions
from proxykd.training.stage_losses import CoarseLoss, DenseLoss
from tests.engine_scores import told

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


def taken_together(teacher, student, prefix, token, top_k):
    """log p' and log q' at a prefix where `token` was drawn: it and the teacher's likeliest by themselves, all others as
    one."""
    p, q = logps(teacher, prefix), logps(student, prefix)
    apart = p.argsort(descending=True)[:top_k].tolist()
    if token not in apart:
        apart[-1] = token
    others = [i for i in range(VOCABULARY) if i not in apart]
    return tuple(torch.stack([*one[apart], *([one[others].logsumexp(0)] if others else [])]) for one in (p, q))


COARSE = {
    "forward_kl": lambda p, q: (p.exp() * (p - q)).sum(),
    "reverse_kl": lambda p, q: (q.exp() * (q - p)).sum(),
    "jsd": lambda p, q: sum((one.exp() * (one - ((p.exp() + q.exp()) / 2).log())).sum() / 2 for one in (p, q)),
}


def of_told_sample(student, teacher, name, ids, top_k):
    """Value and gradient of a step on one sample that an engine judges, before its tokens divide them."""
    [judged] = told(teacher, [PROMPT], [list(ids)], top_k)
    row = {"prompt_ids": PROMPT, "completion_ids": list(ids), "judged": judged}
    terms, _ = CoarseLoss([row], name)(student, [row])
    value = terms["divergence"] * len(ids)
    return float(value.detach()), gradient(student, value)


@pytest.mark.parametrize("name", COARSE)
@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_an_engines_judgement_averages_to_the_coarse_divergence_at_each_prefix(student, teacher, name, top_k):
    """Over all completions: at each prefix, that of the outcomes which each token would tell apart, by how likely the
    student is to draw it, prefix and token held still."""
    terms = [
        probability(student, (*prefix, token)) * COARSE[name](*taken_together(teacher, student, prefix, token, top_k))
        for prefix in prefixes()
        for token in range(VOCABULARY)
    ]
    whole = torch.stack(terms).sum()
    expected = float(whole.detach()), gradient(student, whole)
    weighted = [
        (probability(student, ids), of_told_sample(student, teacher, name, ids, top_k)) for ids in completions()
    ]
    assert sum(weight * value for weight, (value, _) in weighted) == pytest.approx(expected[0], rel=1e-4)
    found = sum(weight * part for weight, (_, part) in weighted)
    assert torch.allclose(found, expected[1], rtol=1e-3, atol=1e-5 * float(expected[1].abs().max()))


@pytest.mark.parametrize("name", COARSE)
def test_an_engines_judgement_is_a_lower_bound_and_exact_where_it_tells_all(student, teacher, name):
    for ids in completions():
        row = {"prompt_ids": PROMPT, "completion_ids": list(ids)}
        terms, _ = DenseLoss([row], teacher, Divergence(name))(student, [row])
        dense = float(terms["divergence"].detach()) * len(ids)
        values = [of_told_sample(student, teacher, name, ids, top_k) for top_k in range(1, VOCABULARY + 1)]
        assert all(0 <= value <= dense * (1 + 1e-5) + 1e-6 for value, _ in values)
        whole, its_gradient = values[-1]
        assert whole == pytest.approx(dense, rel=1e-4, abs=1e-6)
        expected = of_sample(student, teacher, name, ids)
        assert torch.allclose(its_gradient, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_the_token_that_was_drawn_is_always_told_apart():
    top = TopK(
        torch.tensor([[5, 2], [5, 2]]), torch.tensor([[0.5, 0.3], [0.5, 0.3]]).log(), torch.tensor([0.2, 0.2]).log()
    )
    found = with_token(top, torch.tensor([5, 7]), torch.tensor([0.5, 0.01]).log())
    assert found.ids_NK.tolist() == [[5, 2], [5, 7]]
    assert found.logps_NK.exp().tolist() == [pytest.approx([0.5, 0.3]), pytest.approx([0.5, 0.01])]
    assert found.tail_logmass_N.exp().tolist() == pytest.approx([0.2, 0.49])
    assert top.ids_NK.tolist() == [[5, 2], [5, 2]]


@pytest.mark.parametrize("name", COARSE)
def test_a_rest_without_mass_is_neither_infinite_nor_moves_anything(name):
    """Of the proxy, of the student, and of both: float32 cannot tell it from the least."""
    for p_rest, q_rest in ((0.0, 0.1), (0.1, 0.0), (0.0, 0.0)):
        proxy = TopK(
            torch.zeros(1, 1, dtype=torch.long), torch.tensor([[1 - p_rest]]).log(), torch.tensor([p_rest]).log()
        )
        logits = torch.tensor([[math.log(1 - q_rest)]], requires_grad=True)
        rest = torch.tensor([q_rest]).log()
        value = coarse_divergence(name, proxy, TopK(proxy.ids_NK, logits, rest))
        value.sum().backward()
        assert math.isfinite(float(value))
        assert logits.grad.isfinite().all()
        assert float(value) == pytest.approx(0, abs=1e-6) or p_rest != q_rest


def test_its_gradient_in_the_students_logits_is_the_formulas():
    """Reverse KL: q_v * (log q'(c) - log p'(c) - D) for a token v of the outcome c; in float64, against autograd."""
    torch.manual_seed(0)
    logits = torch.randn(9, dtype=torch.float64, requires_grad=True)
    p, outcomes = torch.randn(9, dtype=torch.float64).softmax(0), [[4], [7], [0, 1, 2, 3, 5, 6, 8]]

    def together(logps):
        return torch.stack([logps[outcome].logsumexp(0) for outcome in outcomes])

    q = logits.log_softmax(0)
    value = DENSE_DIVERGENCES["reverse_kl"](together(p.log()), together(q))
    [found] = torch.autograd.grad(value, logits)
    for c, outcome in enumerate(outcomes):
        for v in outcome:
            gap = float(together(q)[c] - together(p.log())[c] - value)
            assert float(found[v]) == pytest.approx(float(q[v].exp()) * gap, abs=1e-12)
