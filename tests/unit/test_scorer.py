"""Completion log-probs against float64 loops over the whole-sequence softmax, values and gradients."""

from __future__ import annotations

import math

import pytest
import torch

from proxykd.config import ModelConfig
from proxykd.losses import head as head_module
from proxykd.losses.head import Head
from proxykd.losses.head_chunks import CHUNK_BYTES
from proxykd.models.batching import collate
from proxykd.models.loading import load_scorer
from proxykd.models.scorer import CompletionScorer

PROMPTS = [[1, 7, 9, 30], [1, 8], [1, 12, 13, 14, 15]]
COMPLETIONS = [[40, 41, 2], [2], [50, 51, 52, 53, 54, 2]]
"""The second is the stop token alone; 2 is also the pad id."""


@pytest.fixture
def model(tiny):
    return load_scorer(tiny, ModelConfig(source=str(tiny), dtype="float32", method="full"))


def loop_logps(model, prompt, completion):
    """log p of each completion token by a float64 softmax over one unpadded sequence."""
    ids = torch.tensor([prompt + completion])
    logits = model.model.double()(input_ids=ids).logits[0, :, : model.vocabulary]
    logps = []
    for offset, token in enumerate(completion):
        row = logits[len(prompt) + offset - 1]
        largest = row.max()
        logps.append(row[token] - largest - (row - largest).exp().sum().log())
    return torch.stack(logps)


def test_log_probs_match_float64_loops_over_unpadded_sequences(model):
    batch = collate(PROMPTS, COMPLETIONS)
    ours = model(batch).token_logps_N
    expected = torch.cat([loop_logps(model, p, c) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)])
    torch.testing.assert_close(ours.double(), expected, atol=2e-5, rtol=0)
    assert batch.lengths_B.tolist() == [3, 1, 6]
    assert batch.labels_N.tolist() == [token for completion in COMPLETIONS for token in completion]


def test_gradient_matches_float64_loops(model):
    weights = torch.linspace(-1.0, 2.0, 10)
    (model(collate(PROMPTS, COMPLETIONS)).token_logps_N * weights).sum().backward()
    ours = {name: p.grad.double().clone() for name, p in model.named_parameters()}
    model.zero_grad()
    expected = torch.cat([loop_logps(model, p, c) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)])
    (expected * weights.double()).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad.double(), atol=5e-5, rtol=1e-3, msg=name)


def test_chunks_change_nothing(model, monkeypatch):
    batch = collate(PROMPTS, COMPLETIONS)
    whole, whole_scores = model(batch).token_logps_N, model.score(batch, 5)
    monkeypatch.setitem(CHUNK_BYTES, "cpu", 4 * model.vocabulary * 3)
    torch.testing.assert_close(model(batch).token_logps_N, whole)
    torch.testing.assert_close(model.score(batch, 5).top.tail_logmass_N, whole_scores.top.tail_logmass_N)


def test_no_tensor_of_tokens_by_vocabulary_exists_forward_or_backward(model, monkeypatch):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Longest(TorchDispatchMode):
        rows = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for value in result if isinstance(result, tuple | list) else [result]:
                # The transposed head is [hidden = 64, V]; whatever is of tokens has at most their 10 rows.
                if isinstance(value, torch.Tensor) and value.shape[1:] == (model.vocabulary,) and len(value) <= 10:
                    self.rows = max(self.rows, len(value))
            return result

    monkeypatch.setitem(CHUNK_BYTES, "cpu", 4 * model.vocabulary * 3)
    batch = collate(PROMPTS, COMPLETIONS)
    ids = torch.arange(40).reshape(10, 4)
    with Longest() as longest:
        scores = model(batch, ids)
        (scores.token_logps_N.sum() + scores.top.tail_logmass_N.sum()).backward()
        model.score(batch, 5)
    assert longest.rows == 3


def test_the_kl_from_another_model_comes_along_chunk_by_chunk(model, monkeypatch):
    batch = collate(PROMPTS, COMPLETIONS)
    other = torch.randn(10, model.vocabulary, generator=torch.Generator().manual_seed(0))
    ours = model.head().logits(model.hidden(batch)).double().log_softmax(-1)
    theirs = other.double().log_softmax(-1)
    expected = (theirs.exp() * (theirs - ours)).sum(-1)
    monkeypatch.setitem(CHUNK_BYTES, "cpu", 4 * model.vocabulary * 3)
    kl = model.score(batch, versus=lambda part: other[part]).kl_N
    torch.testing.assert_close(kl.double(), expected, atol=1e-5, rtol=1e-5)


def test_top_k_tail_and_argmax_add_up_to_the_full_softmax(model):
    batch = collate(PROMPTS, COMPLETIONS)
    scores = model.score(batch, 10)
    logits = model.head().logits(model.hidden(batch)).double()
    probabilities = logits.softmax(-1)
    values, ids = probabilities.topk(10)
    assert torch.equal(scores.top.ids_NK, ids)
    torch.testing.assert_close(scores.top.logps_NK.double().exp(), values, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(scores.top.tail_logmass_N.double().exp(), 1 - values.sum(-1), atol=1e-6, rtol=1e-4)
    assert torch.equal(scores.argmax_N, probabilities.argmax(-1))


def test_padded_vocabulary_is_cut(model):
    model.vocabulary = 200
    batch = collate([[1, 5]], [[6, 7]])
    probabilities = model.head().logits(model.hidden(batch)).softmax(-1)
    assert probabilities.shape == (2, 200)
    torch.testing.assert_close(model(batch).token_logps_N.exp(), probabilities[[0, 1], [6, 7]])


def head_of(rows: int, vocabulary: int, softcap=None, bias=False, cut=0) -> tuple[Head, torch.Tensor]:
    torch.manual_seed(0)
    linear = torch.nn.Linear(8, vocabulary + cut, bias=bias)
    return Head(linear, vocabulary, softcap), torch.randn(rows, 8, requires_grad=True)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize(("bias", "cut"), [(False, 0), (True, 3)])
@pytest.mark.parametrize("top_k", [0, 4])
def test_head_values_and_gradients_match_a_dense_float64_softmax(monkeypatch, softcap, bias, cut, top_k):
    head, hidden = head_of(11, 30, softcap, bias, cut)
    monkeypatch.setitem(CHUNK_BYTES, "cpu", 4 * 30 * 4)
    labels = torch.randint(30, (11,))
    ids = torch.stack([torch.randperm(30)[:top_k] for _ in range(11)])
    weights = [torch.randn(11), torch.randn(11, top_k), torch.randn(11)]
    sum((a * b).sum() for a, b in zip(head.token_logps(hidden, labels, ids), weights, strict=True)).backward()
    inputs = [hidden, *head.linear.parameters()]
    ours = [value.grad for value in inputs]

    exact = [value.detach().double().requires_grad_() for value in inputs]
    logits = exact[0] @ exact[1].T + (exact[2] if bias else 0)
    logits = logits[:, :30]
    if softcap:
        logits = softcap * (logits / softcap).tanh()
    p = logits.exp() / logits.exp().sum(1, keepdim=True)
    rows = torch.arange(11)[:, None]
    tail = (1 - p[rows, ids].sum(1)).log()
    columns = (p[rows[:, 0], labels].log(), p[rows, ids].log(), tail)
    sum((a * b).sum() for a, b in zip(columns, weights, strict=True)).backward()
    for value, reference in zip(ours, exact, strict=True):
        torch.testing.assert_close(value.double(), reference.grad, atol=2e-5, rtol=1e-4)
    for value, reference in zip(head.token_logps(hidden, labels, ids), columns, strict=True):
        torch.testing.assert_close(value.double(), reference, atol=2e-6, rtol=1e-5)


def test_tail_is_finite_with_finite_gradient_where_the_top_holds_all_mass():
    head, hidden = head_of(1, 4)
    with torch.no_grad():
        hidden.fill_(1.0)
        head.linear.weight.copy_(torch.tensor([200.0, 100.0, 0.0, -50.0])[:, None] / 8)
    label = torch.tensor([0])
    tail = head.token_logps(hidden, label, torch.tensor([[0, 1]]))[2]
    assert tail.item() == pytest.approx(-200.0, abs=1e-4)
    tail.sum().backward()
    # d(rest - whole)/d(logits) is +1 at the third and -1 at the first; the others hold no mass.
    torch.testing.assert_close(hidden.grad, (head.linear.weight[2] - head.linear.weight[0])[None].detach())
    assert head.token_logps(hidden, label, torch.tensor([[0, 1, 2, 3]]))[2].item() == -math.inf


def test_ids_that_cover_the_vocabulary_leave_a_finite_gradient():
    head, hidden = head_of(3, 4)
    logps = head.token_logps(hidden, torch.tensor([0, 1, 2]), torch.tensor([[0, 1, 2, 3]] * 3))[1]
    (logps.exp() * logps).sum().backward()
    assert torch.isfinite(hidden.grad).all()
    assert torch.isfinite(head.linear.weight.grad).all()


@pytest.mark.parametrize(("name", "value", "factor"), [("logit_scale", 0.25, 0.25), ("logits_scaling", 4.0, 0.25)])
def test_logits_scaled_by_the_model_are_scaled_here(model, name, value, factor):
    batch = collate(PROMPTS, COMPLETIONS)
    plain = model.head().logits(model.hidden(batch))
    setattr(model.model.config, name, value)
    scaled = CompletionScorer(model.model, model.vocabulary)
    torch.testing.assert_close(scaled.head().logits(scaled.hidden(batch)), plain * factor)


def test_an_empty_completion_has_no_tokens_and_an_empty_prompt_is_refused(model):
    batch = collate([[1, 5], [1, 6, 7]], [[], [8, 2]])
    assert batch.lengths_B.tolist() == [0, 2]
    assert model(batch).token_logps_N.shape == (2,)
    with pytest.raises(ValueError, match="prompt without tokens"):
        collate([[]], [[3]])


@pytest.mark.parametrize("block_rows", [7, 1000])
def test_a_bfloat16_head_gives_logits_that_are_not_rounded(monkeypatch, block_rows):
    """Its own bfloat16 product is off by up to 1/16 at logits of 20; gradients are those of that dtype."""
    monkeypatch.setattr(head_module, "WEIGHT_BYTES", 4 * 64 * block_rows)
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 50, bias=False).bfloat16()
    hidden = (20 * torch.randn(9, 64)).bfloat16().requires_grad_()
    exact = hidden.detach().double() @ linear.weight.detach().double().T
    logits = Head(linear, 50).logits(hidden)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.double(), exact, atol=1e-5, rtol=1e-6)
    rounded = linear(hidden).float()
    assert (rounded.double() - exact).abs().max() > 0.03
    weights = torch.randn(9, 50)
    ours = torch.autograd.grad((logits * weights).sum(), [hidden, linear.weight])
    theirs = torch.autograd.grad((rounded * weights).sum(), [hidden, linear.weight])
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
