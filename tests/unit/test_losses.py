"""The losses against float64 arithmetic written with plain loops, values and gradients, and their edge cases."""

from __future__ import annotations

import math

import pytest
import torch

from proxykd.losses.divergences import forward_kl
from proxykd.losses.sequence_losses import (
    TOP_K_DIVERGENCES,
    dpo,
    kl_both_renormalised,
    kl_proxy_renormalised,
    kl_tail,
    kl_truncated,
    sequence_sums,
)
from proxykd.losses.top_k import TopK, shifted


def numerical_gradient(function, values, step=1e-6):
    gradient = []
    for i in range(len(values)):
        up, down = list(values), list(values)
        up[i] += step
        down[i] -= step
        gradient.append((function(up) - function(down)) / (2 * step))
    return gradient


def test_dpo_has_the_minus_sign_and_matches_scalar_arithmetic():
    chosen, rejected, ref_chosen, ref_rejected = (
        [-3.0, -20.0, -1.0],
        [-4.0, -11.0, -1.0],
        [-5.0, -18.0, -1.0],
        [-3.5, -12.0, -1.0],
    )
    tensors = [
        torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (chosen, rejected, ref_chosen, ref_rejected)
    ]
    losses, margins = dpo(*tensors, beta=0.1)
    for i in range(3):
        margin = (chosen[i] - ref_chosen[i]) - (rejected[i] - ref_rejected[i])
        assert margins[i].item() == pytest.approx(margin)
        assert losses[i].item() == pytest.approx(math.log(1 + math.exp(-0.1 * margin)))
    losses.sum().backward()
    # Minimising must raise the chosen and lower the rejected: d/dchosen = -beta * sigmoid(-beta * margin).
    for i in range(3):
        slope = 0.1 / (1 + math.exp(0.1 * margins[i].item()))
        assert tensors[0].grad[i].item() == pytest.approx(-slope)
        assert tensors[1].grad[i].item() == pytest.approx(slope)


def test_dpo_of_equal_policies_is_ln_2_and_survives_huge_margins():
    zero = torch.zeros(1)
    assert dpo(zero, zero, zero, zero, beta=0.1)[0].item() == pytest.approx(math.log(2))
    losses, _ = dpo(torch.tensor([1e6, -1e6]), torch.zeros(2), torch.zeros(2), torch.zeros(2), beta=1.0)
    assert losses.tolist() == [0.0, 1e6]


def random_top_k(vocabulary=50, k=5, tokens=4, seed=0):
    """A proxy's top-K, and student logits over the whole vocabulary, float64."""
    generator = torch.Generator().manual_seed(seed)
    proxy = (2 * torch.randn(tokens, vocabulary, generator=generator, dtype=torch.float64)).log_softmax(-1)
    student = 2 * torch.randn(tokens, vocabulary, generator=generator, dtype=torch.float64)
    values, ids = proxy.topk(k)
    tail = (1 - values.exp().sum(-1)).log()
    return TopK(ids, values, tail), student


def at(logits, ids):
    normaliser = logits.logsumexp(-1, keepdim=True)
    tail = logits.scatter(1, ids, -torch.inf).logsumexp(-1) - normaliser[:, 0]
    return TopK(ids, logits.gather(1, ids) - normaliser, tail)


def scalar_divergence(kind, proxy, logits_row, token):
    """One token's divergence from definitions, with math on Python floats."""
    p = [math.exp(v) for v in proxy.logps_NK[token].tolist()]
    ids = proxy.ids_NK[token].tolist()
    largest = max(logits_row)
    total = sum(math.exp(v - largest) for v in logits_row)
    q_all = [math.exp(v - largest) / total for v in logits_row]
    q = [q_all[i] for i in ids]
    if kind == "tail":
        outside = sum(q_all[i] for i in range(len(q_all)) if i not in ids)
        return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) + (1 - sum(p)) * math.log(
            (1 - sum(p)) / outside
        )
    if kind in ("proxy_renormalised", "both_renormalised"):
        p = [a / sum(p) for a in p]
    if kind == "both_renormalised":
        q = [b / sum(q) for b in q]
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize("kind", TOP_K_DIVERGENCES)
def test_sparse_divergences_match_scalar_arithmetic_with_gradients(kind):
    proxy, logits = random_top_k()
    logits.requires_grad_()
    values = TOP_K_DIVERGENCES[kind](proxy, at(logits, proxy.ids_NK))
    values.sum().backward()
    for token in range(4):
        row = logits[token].tolist()
        assert values[token].item() == pytest.approx(scalar_divergence(kind, proxy, row, token), abs=2e-6)
        expected = numerical_gradient(lambda r, t=token: scalar_divergence(kind, proxy, r, t), row)
        assert logits.grad[token].tolist() == pytest.approx(expected, abs=2e-6)


def test_the_tail_bucket_bounds_the_full_kl_from_below_and_is_zero_for_equals():
    proxy, logits = random_top_k(seed=1)
    full_proxy = (2 * torch.randn(4, 50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).log_softmax(
        -1
    )
    sparse = kl_tail(proxy, at(logits, proxy.ids_NK)).double()
    dense = forward_kl(full_proxy.float().log_softmax(-1), logits.float().log_softmax(-1)).double()
    assert (sparse >= -1e-7).all()
    assert (sparse <= dense + 1e-6).all()
    assert kl_tail(proxy, at(full_proxy, proxy.ids_NK)).abs().max() < 1e-6
    assert kl_truncated(proxy, proxy).abs().max() == 0


def test_k_of_the_whole_vocabulary_leaves_no_tail():
    proxy, logits = random_top_k(vocabulary=6, k=6)
    proxy = TopK(proxy.ids_NK, proxy.logps_NK, torch.full((4,), -math.inf, dtype=torch.float64))
    logits.requires_grad_()
    values = kl_tail(proxy, at(logits, proxy.ids_NK))
    values.sum().backward()
    assert torch.isfinite(values).all()
    assert torch.isfinite(logits.grad).all()


def test_minus_infinity_in_the_proxy_counts_nothing_and_keeps_the_gradient_finite():
    proxy = TopK(torch.tensor([[0, 1]]), torch.tensor([[0.0, -math.inf]]), torch.tensor([-math.inf]))
    logits = torch.tensor([[5.0, -3.0, 1.0]], requires_grad=True)
    for divergence in (kl_tail, kl_truncated, kl_proxy_renormalised):
        value = divergence(proxy, at(logits, proxy.ids_NK))
        assert value.item() == pytest.approx(-(logits.log_softmax(-1)[0, 0]).item(), rel=1e-5)
    value.backward()
    assert torch.isfinite(logits.grad).all()


def outcomes(*masses):
    """One token's top 2 of a vocabulary, and its tail."""
    *top, tail = (math.log(mass) if mass else -math.inf for mass in masses)
    return TopK(torch.tensor([[7, 4]]), torch.tensor([top]), torch.tensor([tail]))


def masses(top):
    return [*top.logps_NK.exp().tolist()[0], top.tail_logmass_N.exp().item()]


def test_a_start_is_moved_by_what_changed_between_two_others_over_k_tokens_and_the_tail():
    """0.5 0.3 0.2 times 0.6 / 0.3, 0.3 / 0.6, 0.1 / 0.1 is 1.0 0.15 0.2, of 1.35."""
    target = shifted(outcomes(0.5, 0.3, 0.2), aligned=outcomes(0.6, 0.3, 0.1), base=outcomes(0.3, 0.6, 0.1))
    assert masses(target) == pytest.approx([1.0 / 1.35, 0.15 / 1.35, 0.2 / 1.35], rel=1e-6)
    assert target.ids_NK.tolist() == [[7, 4]]


def test_no_change_leaves_the_start_and_a_start_that_is_the_base_becomes_what_it_changed_to():
    start, aligned, base = outcomes(0.5, 0.3, 0.2), outcomes(0.6, 0.3, 0.1), outcomes(0.3, 0.6, 0.1)
    assert masses(shifted(start, aligned, aligned)) == pytest.approx([0.5, 0.3, 0.2], rel=1e-6)
    assert masses(shifted(base, aligned, base)) == pytest.approx([0.6, 0.3, 0.1], rel=1e-6)


def test_a_shift_keeps_outcomes_without_mass_and_takes_any_ratio():
    nothing_outside = shifted(outcomes(0.5, 0.5, 0), aligned=outcomes(0.8, 0.2, 0), base=outcomes(0.2, 0.8, 0))
    assert masses(nothing_outside) == pytest.approx([16 / 17, 1 / 17, 0.0], rel=1e-6)
    far = TopK(torch.tensor([[7, 4]]), torch.tensor([[-120.0, -0.1]]), torch.tensor([-2.4]))
    near = TopK(torch.tensor([[7, 4]]), torch.tensor([[-0.1, -120.0]]), torch.tensor([-2.4]))
    assert masses(shifted(near, aligned=near, base=far)) == pytest.approx([1.0, 0.0, 0.0])


def minimise(divergence, proxy, vocabulary, steps=3000):
    logits = torch.zeros(1, vocabulary, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        divergence(proxy, at(logits, proxy.ids_NK)).sum().backward()
        optimizer.step()
    return logits.softmax(-1)[0, proxy.ids_NK[0]].sum().item()


def test_only_the_tail_bucket_keeps_the_mass_where_the_proxy_has_it():
    proxy, _ = random_top_k(vocabulary=200, k=5, tokens=1, seed=3)
    mass = proxy.logps_NK.exp().sum().item()
    assert minimise(kl_tail, proxy, 200) == pytest.approx(mass, abs=0.01)
    assert minimise(kl_proxy_renormalised, proxy, 200) > 0.97
    assert abs(minimise(kl_both_renormalised, proxy, 200) - mass) > 0.1


def test_sequence_sums_of_empty_sequences_are_zero():
    sums = sequence_sums(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([2, 0, 1, 0]))
    assert sums.tolist() == [3.0, 0.0, 4.0, 0.0]


def long_sequences(lengths=(8000, 1, 4000, 0, 2500)):
    generator = torch.Generator().manual_seed(4)
    return [-3 * torch.rand(length, generator=generator) for length in lengths]


def sums_of(sequences):
    return sequence_sums(torch.cat(sequences), torch.tensor([len(one) for one in sequences]))


def test_sums_of_long_sequences_are_exact_in_whatever_order_their_tokens_are_added():
    sequences = long_sequences()
    exact = [math.fsum(one.tolist()) for one in sequences]
    assert exact[0] < -10_000
    assert sums_of(sequences).tolist() == pytest.approx(exact, rel=1e-12)
    shuffled = [one[torch.randperm(len(one), generator=torch.Generator().manual_seed(5))] for one in sequences]
    assert sums_of(shuffled).tolist() == pytest.approx(exact, rel=1e-12)
    # Beside which other sequences one stands makes no difference at all.
    assert sums_of(sequences[::-1]).tolist() == sums_of(sequences).tolist()[::-1]
    assert torch.cat([sums_of([one]) for one in sequences]).equal(sums_of(sequences))


def test_each_token_takes_the_gradient_of_its_sequence():
    values = torch.cat(long_sequences((3, 0, 2))).requires_grad_()
    (sequence_sums(values, torch.tensor([3, 0, 2])) * torch.tensor([0.5, 7.0, -2.0])).sum().backward()
    assert values.grad.dtype == torch.float32
    assert values.grad.tolist() == [0.5, 0.5, 0.5, -2.0, -2.0]
