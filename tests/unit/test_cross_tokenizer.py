"""The losses for a student of another tokenizer, against float64 arithmetic written with plain loops and by hand."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from torch import nn

from proxykd.losses.cross_tokenizer import (
    AlignedTopK,
    aligned_coarse,
    aligned_kl,
    aligned_labels,
    binary_kl,
    chunk_logps,
    folded,
    mapped,
    sorted_distance,
    token_and_rest,
)
from proxykd.losses.head import Head
from proxykd.losses.sequence_losses import kl_tail
from proxykd.losses.top_k import TopK

VOCABULARY = 12


def top_k(probabilities: list[list[float]], ids: list[list[int]], dtype=torch.float64) -> TopK:
    logps = torch.tensor(probabilities, dtype=torch.float64).log()
    tail = torch.tensor([1 - sum(row) for row in probabilities], dtype=torch.float64).clamp(min=0).log()
    return TopK(torch.tensor(ids), logps.to(dtype), tail.to(dtype))


def random_labels(n: int, k: int, vocabulary: int, seed: int = 0) -> tuple[TopK, torch.Tensor]:
    """Top K of random distributions in float32, and the distributions."""
    torch.manual_seed(seed)
    logps = (torch.randn(n, vocabulary, dtype=torch.float64) * 2).log_softmax(-1)
    top, ids = logps.topk(k, dim=-1)
    tail = logps.scatter(1, ids, -torch.inf).logsumexp(-1)
    return TopK(ids, top.float(), tail.float()), logps


class Student:
    """A head on random hidden states, so that gradients go the way that they go in training."""

    def __init__(self, n: int, seed: int = 1):
        torch.manual_seed(seed)
        self.linear = nn.Linear(5, VOCABULARY, bias=False)
        self.hidden_NH = torch.randn(n, 5, requires_grad=True)
        self.ids_N = torch.randint(VOCABULARY, (n,))

    def at(self, ids_NK: torch.Tensor) -> tuple[torch.Tensor, TopK]:
        head = Head(self.linear, VOCABULARY)
        token_logps, top_logps, tail = head.token_logps(self.hidden_NH, self.ids_N, ids_NK)
        return token_logps, TopK(ids_NK, top_logps, tail)

    def gradients(self, loss: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad(loss.sum(), [self.hidden_NH, self.linear.weight]))


# -- labels in another vocabulary ---------------------------------------------------------------------------------


def test_masses_of_one_image_add_up_and_what_has_none_joins_the_tail():
    labels = top_k([[0.4, 0.2, 0.15, 0.1]], [[7, 3, 5, 9]])
    top, kept = mapped(labels, torch.tensor([[2, 6, 2, -1]]))
    assert kept.tolist() == [[True, True, False, False]]
    assert top.ids_NK[0, :2].tolist() == [2, 6]
    assert len(set(top.ids_NK[0].tolist())) == 4  # the head needs distinct ids
    assert top.logps_NK[0].exp().tolist() == pytest.approx([0.55, 0.2, 0, 0])
    assert top.tail_logmass_N[0].exp().item() == pytest.approx(0.15 + 0.1)


@pytest.mark.parametrize("row", list(product([-1, 0, 1, 5], repeat=4)))
def test_mapping_against_a_loop(row):
    labels, _ = random_labels(1, 4, 9)
    masses, tail = {}, labels.tail_logmass_N[0].double().exp().item()
    for image, logp in zip(row, labels.logps_NK[0].double().tolist(), strict=True):
        if image == -1:
            tail += math.exp(logp)
        else:
            masses[image] = masses.get(image, 0.0) + math.exp(logp)
    top, kept = mapped(labels, torch.tensor([row]))
    found = {i: p for i, p, k in zip(top.ids_NK[0].tolist(), top.logps_NK[0].exp().tolist(), kept[0], strict=True) if k}
    assert found == pytest.approx(masses, rel=1e-6)
    assert list(found) == list(dict.fromkeys(image for image in row if image >= 0))
    assert top.tail_logmass_N[0].exp().item() == pytest.approx(tail, rel=1e-6)
    assert len(set(top.ids_NK[0].tolist())) == 4
    assert (top.logps_NK[0][~kept[0]] == -torch.inf).all()


def test_an_image_for_each_leaves_the_labels_as_they_are():
    labels, _ = random_labels(50, 4, VOCABULARY)
    top, kept = mapped(labels, labels.ids_NK)
    assert kept.all()
    assert torch.equal(top.ids_NK, labels.ids_NK)
    assert torch.equal(top.logps_NK, labels.logps_NK)
    assert torch.equal(top.tail_logmass_N, labels.tail_logmass_N)
    assert torch.equal(folded(labels, kept).tail_logmass_N, labels.tail_logmass_N)


def test_the_kl_after_mapping_is_that_of_the_merged_outcomes():
    """Value and gradient in the student's logits, against a loop over outcomes in float64 and central differences."""
    labels, _ = random_labels(1, 4, 9)
    images = [3, -1, 3, 8]
    logits = torch.randn(VOCABULARY, dtype=torch.float64)

    def loss(values: list[float]) -> float:
        total = sum(math.exp(v) for v in values)
        p = {3: 0.0, 8: 0.0}
        for image, logp in zip(images, labels.logps_NK[0].double().tolist(), strict=True):
            if image >= 0:
                p[image] += math.exp(logp)
        q = {image: math.exp(values[image]) / total for image in p}
        rest_p, rest_q = 1 - sum(p.values()), 1 - sum(q.values())
        return sum(p[i] * math.log(p[i] / q[i]) for i in p) + rest_p * math.log(rest_p / rest_q)

    top, kept = mapped(labels, torch.tensor([images]))
    leaf = logits.clone().requires_grad_()
    logps = leaf.log_softmax(-1)
    tail = logps.scatter(0, top.ids_NK[0], -torch.inf).logsumexp(-1)
    student = TopK(top.ids_NK, logps[top.ids_NK], tail[None])
    value = kl_tail(top, folded(student, kept))
    assert value.item() == pytest.approx(loss(logits.tolist()), rel=1e-5)
    [gradient] = torch.autograd.grad(value.sum(), leaf)
    for i in range(VOCABULARY):
        up, down = logits.tolist(), logits.tolist()
        up[i] += 1e-5
        down[i] -= 1e-5
        assert gradient[i].item() == pytest.approx((loss(up) - loss(down)) / 2e-5, abs=1e-6)


def test_mapping_never_raises_the_kl():
    """The data processing inequality, over whole distributions: outcomes that are merged tell less."""
    labels, p = random_labels(200, 4, VOCABULARY)
    q = (torch.randn(200, VOCABULARY, dtype=torch.float64)).log_softmax(-1)
    whole = (p.exp() * (p - q)).sum(-1)
    images = labels.ids_NK.clone()
    images[:, 2] = -1  # the third has no image
    top, kept = mapped(labels, images)
    student = TopK(top.ids_NK, q.gather(1, top.ids_NK), q.scatter(1, top.ids_NK, -torch.inf).logsumexp(-1))
    assert (kl_tail(top, folded(student, kept)) <= whole + 1e-6).all()


# -- equal tokenizers ---------------------------------------------------------------------------------------------


def test_with_equal_tokenizers_loss_and_gradient_are_those_of_the_top_k_with_tail():
    n = 40
    labels, logps = random_labels(n, 4, VOCABULARY)
    ours, theirs = Student(n), Student(n)
    ids = ours.ids_N
    token_logps = logps.gather(1, ids[:, None])[:, 0]
    target = aligned_labels(labels, ids, token_logps, ids, torch.arange(n), labels.ids_NK, torch.zeros(0, 4).long())
    mine = aligned_kl(target, *ours.at(target.top.ids_NK))
    _, top = theirs.at(labels.ids_NK)
    today = kl_tail(labels, top)
    assert torch.equal(mine, today)
    weights = torch.rand(n)  # trust, and a batch's unit
    for one, other in zip(ours.gradients(mine * weights), theirs.gradients(today * weights), strict=True):
        assert torch.equal(one, other)


# -- chunks ------------------------------------------------------------------------------------------------------------


def test_the_binary_divergence_by_hand():
    p, q = torch.tensor(0.5, dtype=torch.float64), torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    value = binary_kl(p.log(), (1 - p).log(), q.log(), (1 - q).log())
    assert value.item() == pytest.approx(0.5 * math.log(0.5 / 0.2) + 0.5 * math.log(0.5 / 0.8))
    value.backward()
    assert q.grad.item() == pytest.approx(-0.5 / 0.2 + 0.5 / 0.8)  # -P / Q + (1 - P) / (1 - Q)


def test_a_chunk_against_sums_over_logits():
    """Three tokens of the student against two of the proxy: value and gradient in every logit, by central differences."""
    labels, logps = random_labels(2, 4, 9)
    proxy_ids = labels.ids_NK[:, 1]
    student_ids = torch.tensor([4, 0, 7])
    logits = torch.randn(3, VOCABULARY, dtype=torch.float64)

    def loss(rows: list[list[float]], temperature: float) -> float:
        p = math.exp(sum(logps[t, proxy_ids[t]].item() for t in range(2)))
        q = math.prod(
            math.exp(row[one]) / sum(map(math.exp, row)) for row, one in zip(rows, student_ids.tolist(), strict=True)
        )
        p, q = p ** (1 / temperature), q ** (1 / temperature)
        return temperature * (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))

    token_logps = logps.gather(1, proxy_ids[:, None])[:, 0]
    target = aligned_labels(
        labels,
        proxy_ids,
        token_logps,
        student_ids,
        torch.full((3,), -1),
        torch.full((3, 4), -1),
        torch.tensor([[0, 2, 0, 3]]),
    )
    for temperature in (1.0, 3.0, 100.0):
        leaf = logits.clone().requires_grad_()
        q = leaf.log_softmax(-1)
        top = TopK(
            target.top.ids_NK,
            q.gather(1, target.top.ids_NK),
            q.scatter(1, target.top.ids_NK, -torch.inf).logsumexp(-1),
        )
        values = aligned_kl(target, q.gather(1, student_ids[:, None])[:, 0], top, temperature)
        assert values[:2].tolist() == [0, 0]
        assert values[2].item() == pytest.approx(loss(logits.tolist(), temperature), rel=1e-5)
        [gradient] = torch.autograd.grad(values.sum(), leaf)
        for row, column in product(range(3), range(VOCABULARY)):
            up, down = logits.clone(), logits.clone()
            up[row, column] += 1e-5
            down[row, column] -= 1e-5
            slope = (loss(up.tolist(), temperature) - loss(down.tolist(), temperature)) / 2e-5
            assert gradient[row, column].item() == pytest.approx(slope, abs=1e-5, rel=1e-4)


def test_a_chunk_of_one_token_is_the_kl_with_a_top_k_of_one():
    p, q = top_k([[0.3]], [[5]]), top_k([[0.6]], [[5]])
    logp, rest_p = chunk_logps(p.logps_NK[:, 0], p.tail_logmass_N, torch.tensor([0]), torch.tensor([1]))
    logq, rest_q = chunk_logps(q.logps_NK[:, 0], q.tail_logmass_N, torch.tensor([0]), torch.tensor([1]))
    assert binary_kl(logp, rest_p, logq, rest_q).item() == pytest.approx(kl_tail(p, q).item(), rel=1e-6)


def test_chunks_of_several_lengths_against_a_loop():
    torch.manual_seed(3)
    q = torch.rand(11, dtype=torch.float64)
    firsts, lengths = torch.tensor([0, 1, 4, 6]), torch.tensor([1, 3, 2, 5])
    logq, rest = chunk_logps(q.log(), (1 - q).log(), firsts, lengths)
    for s in range(4):
        whole = math.prod(q[firsts[s] : firsts[s] + lengths[s]].tolist())
        assert logq[s].exp().item() == pytest.approx(whole)
        assert rest[s].exp().item() == pytest.approx(1 - whole)
    none = torch.zeros(0, dtype=torch.long)
    assert [one.tolist() for one in chunk_logps(q.log(), (1 - q).log(), none, none)] == [[], []]


@pytest.mark.parametrize("temperature", [1.0, 100.0])
def test_it_is_finite_with_a_finite_gradient_as_q_goes_to_one(temperature):
    """log(1 - exp(log Q)) would be log 0: the complements keep what is left."""
    logits = torch.zeros(2, VOCABULARY, dtype=torch.float64)
    logits[:, 3] = 60.0
    leaf = logits.requires_grad_()
    q = leaf.log_softmax(-1)
    rests = q.scatter(1, torch.full((2, 1), 3), -torch.inf).logsumexp(-1)
    logq, rest_q = chunk_logps(q[:, 3], rests, torch.tensor([0]), torch.tensor([2]))
    assert rest_q.item() == pytest.approx(math.log(22) - 60)
    p = torch.tensor([0.9], dtype=torch.float64)
    value = binary_kl(p.log(), (1 - p).log(), logq, rest_q, temperature)
    assert torch.isfinite(value).all()
    [gradient] = torch.autograd.grad(value.sum(), leaf)
    assert torch.isfinite(gradient).all()
    # All but P of the mass must leave the chunk, by whichever of its two tokens is the less certain: both alike here.
    rest_share = 1 - 0.9 ** (1 / temperature)
    assert gradient[:, 3].tolist() == pytest.approx([temperature * rest_share / 2] * 2, rel=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 100.0])
def test_equal_chunks_diverge_by_nothing_and_impossible_ones_by_no_nan(temperature):
    logp = torch.tensor([-1e-14, -0.3, -5.0, -80.0], dtype=torch.float64)
    rest = torch.log(-torch.expm1(logp))
    leaf = logp.clone().requires_grad_()
    value = binary_kl(logp, rest, leaf, torch.log(-torch.expm1(leaf)), temperature)
    assert value.tolist() == [0, 0, 0, 0]
    [gradient] = torch.autograd.grad(value.sum(), leaf)
    assert gradient.abs().max() < 1e-9
    certain, never = torch.tensor([0.0]).double(), torch.tensor([-torch.inf]).double()
    leaf = torch.tensor([-2.0], dtype=torch.float64, requires_grad=True)
    value = binary_kl(certain, never, leaf, torch.log(-torch.expm1(leaf)), temperature)
    assert value.item() == pytest.approx(2.0)  # T * (0 - (-2 / T))
    value.backward()
    assert leaf.grad.item() == pytest.approx(-1.0)


def test_a_high_temperature_goes_to_the_divergence_of_surprisals():
    a, b = 40.0, 55.0
    logs = [torch.tensor([-x], dtype=torch.float64) for x in (a, b)]
    rests = [torch.log1p(-one.exp()) for one in logs]
    assert binary_kl(logs[0], rests[0], logs[1], rests[1]).item() == pytest.approx(0, abs=1e-12)
    tempered = binary_kl(logs[0], rests[0], logs[1], rests[1], 1e6).item()
    assert tempered == pytest.approx(a * math.log(a / b) - a + b, rel=1e-4)


def test_a_tokens_complement_comes_from_its_top_k():
    labels = top_k([[0.7, 0.2], [0.6, 0.3]], [[3, 1], [8, 2]])
    logps, rests = token_and_rest(labels, torch.tensor([1, 5]), torch.tensor([0.2, 0.04], dtype=torch.float64).log())
    assert logps.exp().tolist() == pytest.approx([0.2, 0.04])
    assert rests.exp().tolist() == pytest.approx([0.8, 0.96])
    near = top_k([[1 - 1e-9, 4e-10]], [[3, 1]])
    _, rest = token_and_rest(near, torch.tensor([3]), torch.zeros(1))  # as 16 bits keep its log-prob
    assert rest.exp().item() == pytest.approx(1e-9, rel=1e-6)


def test_tokens_outside_all_spans_learn_nothing():
    student = Student(3)
    labels, _ = random_labels(1, 4, VOCABULARY)
    target = aligned_labels(
        labels,
        labels.ids_NK[:, 0],
        labels.logps_NK[:, 0],
        student.ids_N,
        torch.tensor([-1, 0, -1]),
        torch.cat([torch.full((1, 4), -1), labels.ids_NK, torch.full((1, 4), -1)]),
        torch.zeros(0, 4).long(),
    )
    assert isinstance(target, AlignedTopK)
    values = aligned_kl(target, *student.at(target.top.ids_NK))
    assert values[[0, 2]].tolist() == [0, 0]
    hidden, _ = student.gradients(values)
    assert hidden[[0, 2]].abs().max() == 0
    assert hidden[1].abs().max() > 0


# -- ULD -----------------------------------------------------------------------------------------------------------


def test_sorted_distance_is_uld_over_whole_vocabularies():
    """The smaller vocabulary is filled with tokens of probability 0."""
    p, q = torch.tensor([[0.5, 0.3, 0.2, 0.0]]).double(), torch.tensor([[0.1, 0.6, 0.05, 0.25]]).double()
    ids, nothing = torch.arange(4)[None], torch.tensor([-torch.inf]).double()
    by_rank = [TopK(ids, one.sort(descending=True).values.log(), nothing) for one in (p, q)]
    wanted = abs(0.5 - 0.6) + abs(0.3 - 0.25) + abs(0.2 - 0.1) + abs(0 - 0.05)
    assert sorted_distance(*by_rank).item() == pytest.approx(wanted)
    tailed = [TopK(one.ids_NK[:, :2], one.logps_NK[:, :2], one.logps_NK[:, 2:].logsumexp(-1)) for one in by_rank]
    assert sorted_distance(*tailed).item() == pytest.approx(0.1 + 0.05 + abs(0.2 - 0.15))
    assert sorted_distance(*tailed).item() <= wanted


def test_sorted_distance_has_the_gradient_of_its_definition():
    logits = torch.tensor([1.0, 0.2, -0.5], dtype=torch.float64, requires_grad=True)
    p = top_k([[0.5, 0.3]], [[0, 1]])
    q = logits.log_softmax(-1)
    sorted_distance(p, TopK(torch.tensor([[0, 1]]), q[None, :2], q[2:])).backward()
    share = q.detach().exp()
    signs = torch.sign(share - torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64))
    wanted = [sum(signs[k] * share[k] * (float(j == k) - share[j]) for k in range(3)).item() for j in range(3)]
    assert logits.grad.tolist() == pytest.approx(wanted)


# -- other divergences, over the same outcomes -------------------------------------------------------------------------


def some_of_each() -> tuple[AlignedTopK, Student]:
    """Seven tokens of the student's: three one to one, a chunk of three, and one without counterpart."""
    labels, logps = random_labels(5, 3, VOCABULARY)
    student = Student(7)
    ids = logps.argmax(-1)
    at = torch.tensor([0, 1, -1, -1, -1, 4, -1])
    images = torch.full((7, 3), -1)
    images[0], images[1], images[5] = torch.tensor([3, 3, 5]), torch.tensor([-1, 2, 1]), torch.tensor([0, 4, 8])
    token_logps = logps.gather(1, ids[:, None])[:, 0]
    target = aligned_labels(labels, ids, token_logps, student.ids_N, at, images, torch.tensor([[2, 2, 2, 3]]))
    return target, student


def test_forward_kl_is_the_aligned_kl():
    target, student = some_of_each()
    token_logps, top = student.at(target.top.ids_NK)
    mine, other = aligned_coarse("forward_kl", target, token_logps, top), aligned_kl(target, token_logps, top)
    assert mine.tolist() == pytest.approx(other.tolist(), rel=1e-5)
    assert all(map(torch.isfinite, mine))
    [slope] = torch.autograd.grad((mine - other).sum(), top.logps_NK)
    assert slope.abs().max() < 1e-6


def test_reverse_kl_against_a_loop():
    target, student = some_of_each()
    token_logps, top = student.at(target.top.ids_NK)
    values = aligned_coarse("reverse_kl", target, token_logps, top)
    logits = Head(student.linear, VOCABULARY).logits(student.hidden_NH).double()
    q = logits.softmax(-1)

    def of(outcomes: list[tuple[float, float]]) -> float:
        rest_p, rest_q = (1 - sum(column) for column in zip(*outcomes, strict=True))
        return sum(q_k * math.log(q_k / p_k) for p_k, q_k in [*outcomes, (rest_p, rest_q)])

    for n in (0, 1, 5):
        kept = target.kept_NK[n]
        ids, logps = target.top.ids_NK[n][kept], target.top.logps_NK[n][kept]
        outcomes = [(math.exp(logp), q[n, i].item()) for logp, i in zip(logps.tolist(), ids.tolist(), strict=True)]
        assert len(outcomes) == {0: 2, 1: 2, 5: 3}[n]
        assert values[n].item() == pytest.approx(of(outcomes), rel=1e-4)
    chunk = math.prod(q[n, student.ids_N[n]].item() for n in (2, 3, 4))
    assert values[4].item() == pytest.approx(of([(target.logps_S.exp().item(), chunk)]), rel=1e-4)
    assert values[[2, 3, 6]].tolist() == [0, 0, 0]
