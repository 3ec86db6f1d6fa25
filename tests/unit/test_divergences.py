"""The baselines' divergences against plain numpy in float64, their gradients against finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from proxykd.losses.divergences import DENSE_DIVERGENCES, Divergence
from proxykd.losses.head import Head
from proxykd.losses.head_chunks import CHUNK_BYTES


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
@pytest.mark.parametrize("name", DENSE_DIVERGENCES)
def test_values_are_the_definitions(name, temperature, logits):
    teacher, student = logits
    factor = temperature if name == "tvd" else temperature**2
    expected = factor * BY_HAND[name](softmax(teacher / temperature), softmax(student / temperature))
    found = Divergence(name, temperature)(torch.tensor(teacher), torch.tensor(student))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("name", DENSE_DIVERGENCES)
def test_gradients_are_those_of_the_values_temperature_included(name, logits):
    teacher, student = (torch.tensor(values) for values in logits)
    of_student = Divergence(name, 2.0)
    assert torch.autograd.gradcheck(lambda s: of_student(teacher, s), student.requires_grad_())


def gradient_by_hand(name, teacher, student, temperature):
    """d D(softmax(teacher / T), softmax(student / T)) / d student, through softmax's Jacobian (diag(q) - q q^T) / T."""
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    slope = {
        "forward_kl": -p / q,
        "reverse_kl": np.log(q / p) + 1,
        "jsd": np.log(2 * q / (p + q)) / 2,
        "tvd": np.sign(q - p) / 2,
    }[name]
    return np.stack([(np.diag(r) - np.outer(r, r)) @ s for r, s in zip(q, slope, strict=True)]) / temperature


@pytest.mark.parametrize("name", DENSE_DIVERGENCES)
def test_the_gradient_keeps_its_size_at_any_temperature(name, logits):
    """At large T it goes to a limit that is not 0 and does not grow; at any T it is the plain one times T^order."""
    teacher, student = logits
    vocabulary = teacher.shape[-1]
    order = 1 if name == "tvd" else 2
    t, s = (values - values.mean(-1, keepdims=True) for values in logits)
    sign = np.sign(s - t)
    limit = {
        "forward_kl": (s - t) / vocabulary,
        "reverse_kl": (s - t) / vocabulary,
        "jsd": (s - t) / (4 * vocabulary),
        "tvd": (sign - sign.mean(-1, keepdims=True)) / (2 * vocabulary),
    }[name]
    for temperature, expected, tolerance in (
        (2.5, 2.5**order * gradient_by_hand(name, teacher, student, 2.5), 1e-12),
        (1e4, limit, 2e-3 * np.abs(limit).max()),
    ):
        variable = torch.tensor(student, requires_grad=True)
        Divergence(name, temperature)(torch.tensor(teacher), variable).sum().backward()
        np.testing.assert_allclose(variable.grad, expected, rtol=1e-9, atol=tolerance)


@pytest.mark.parametrize("name", DENSE_DIVERGENCES)
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


@pytest.mark.parametrize("name", DENSE_DIVERGENCES)
def test_chunks_change_neither_values_nor_gradients(name, monkeypatch):
    torch.manual_seed(2)
    heads = [Head(torch.nn.Linear(8, 13, bias=True), 11, softcap=5.0) for _ in range(2)]
    hidden = [torch.randn(9, 8), torch.randn(9, 8, requires_grad=True)]
    found = []
    for size in (1, 4, 100):
        monkeypatch.setitem(CHUNK_BYTES, "cpu", 4 * 11 * size)
        values = Divergence(name).by_token(heads[0], hidden[0], heads[1], hidden[1])
        gradients = torch.autograd.grad(values.sum(), [hidden[1], heads[1].linear.weight])
        found.append((values, *gradients))
    for other in found[1:]:
        for ours, theirs in zip(found[0], other, strict=True):
            torch.testing.assert_close(ours, theirs)
    assert heads[0].linear.weight.grad is None
