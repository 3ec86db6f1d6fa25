"""The baselines' divergences against plain numpy in float64, their gradients against finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from proxykd.divergences import FORMS, Divergence
from proxykd.head import Head


def softmax(logits):
    exp = np.exp(logits - logits.max(-1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)


def kl(p, q):
    return (p * np.log(p / q)).sum(-1)


BY_HAND = {
    "forward_kl": kl,
    "reverse_kl": lambda p, q: kl(q, p),
    "jsd": lambda p, q: (kl(p, (p + q) / 2) + kl(q, (p + q) / 2)) / 2,
    "tvd": lambda p, q: np.abs(p - q).sum(-1) / 2,
}


@pytest.fixture
def logits():
    rng = np.random.default_rng(5)
    return rng.normal(size=(2, 7, 11)) * 2


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("name", FORMS)
def test_values_are_the_definitions(name, temperature, logits):
    teacher, student = logits
    expected = temperature**2 * BY_HAND[name](softmax(teacher / temperature), softmax(student / temperature))
    found = Divergence(name, temperature)(torch.tensor(teacher), torch.tensor(student))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("name", FORMS)
def test_gradients_are_those_of_the_values_temperature_included(name, logits):
    teacher, student = (torch.tensor(values) for values in logits)
    of_student = Divergence(name, 2.0)
    assert torch.autograd.gradcheck(lambda s: of_student(teacher, s), student.requires_grad_())


@pytest.mark.parametrize("name", FORMS)
def test_none_is_negative_and_equal_models_are_at_zero(name, logits):
    teacher, student = (torch.tensor(values).float() for values in logits)
    divergence = Divergence(name)
    assert (divergence(teacher, student) > 0).all()
    torch.testing.assert_close(divergence(teacher, teacher), torch.zeros(7), atol=1e-6, rtol=0)


def test_the_bounded_ones_stay_within_their_bounds():
    teacher, student = torch.tensor([[60.0, 0.0, -60.0]]), torch.tensor([[-60.0, 0.0, 60.0]])
    assert Divergence("tvd")(teacher, student).item() == pytest.approx(1.0)
    assert Divergence("jsd")(teacher, student).item() == pytest.approx(np.log(2))
    assert Divergence("forward_kl")(teacher, student).item() == pytest.approx(120.0)


@pytest.mark.parametrize("name", FORMS)
def test_chunks_change_neither_values_nor_gradients(name, monkeypatch):
    torch.manual_seed(2)
    heads = [Head(torch.nn.Linear(8, 13, bias=True), 11, softcap=5.0) for _ in range(2)]
    hidden = [torch.randn(9, 8), torch.randn(9, 8, requires_grad=True)]
    found = []
    for size in (1, 4, 100):
        monkeypatch.setattr("proxykd.head.CHUNK_BYTES", 4 * 11 * size)
        values = Divergence(name).by_token(heads[0], hidden[0], heads[1], hidden[1])
        gradients = torch.autograd.grad(values.sum(), [hidden[1], heads[1].linear.weight])
        found.append((values, *gradients))
    for other in found[1:]:
        for ours, theirs in zip(found[0], other, strict=True):
            torch.testing.assert_close(ours, theirs)
    assert heads[0].linear.weight.grad is None
