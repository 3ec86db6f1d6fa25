"""Packed sequences, and completions behind one prompt: log-probs and gradients are those of each sequence alone."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import AutoModelForCausalLM

from proxykd.models import packed_attention
from proxykd.models.batching import collate, collate_behind
from proxykd.models.loading import read_model
from proxykd.models.scorer import CompletionScorer
from tests.attention_by_loops import one_stretch_after_the_other
from tests.families import FAMILIES, make

LENGTHS = ((5, 9, 30), (40, 50, 8), (70, 3, 90), (6, 1, 0), (20, 60, 61))
"""Prompt, chosen, rejected: below and above the windows of 64, a single token, and nothing."""


def pairs():
    draw = random.Random(3)
    return [[[draw.randrange(5, 300) for _ in range(size)] for size in sizes] for sizes in LENGTHS]


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    return make(request.param, tmp_path_factory.mktemp(request.param))


def one_by_one(model, weights, cap):
    """The same loss by transformers alone, sequence by sequence, with the gradients that it leaves."""
    total = torch.zeros(())
    logps = []
    for prompt, *sides in pairs():
        for side in sides:
            if not side:
                continue
            ids = torch.tensor([prompt + side])
            logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1, :cap]
            logps.append(logits.log_softmax(-1).gather(1, torch.tensor(side)[:, None])[:, 0])
    found = torch.cat(logps)
    total = (found * weights[: len(found)]).sum()
    total.backward()
    return found.detach(), gradients(model)


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_log_probs_and_gradients_are_those_of_each_sequence_alone(folder, checkpointing):
    weights = torch.rand(1000, generator=torch.Generator().manual_seed(1)) + 0.5
    ours = read_model(folder, torch.float32).eval()
    cap = ours.config.vocab_size
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    expected, expected_gradients = one_by_one(plain, weights, cap)
    scorer = CompletionScorer(ours, cap)
    assert scorer.packs
    if checkpointing:
        scorer.checkpoint_layers()
    rows = pairs()
    batch = collate_behind([prompt for prompt, *_ in rows], [sides for _, *sides in rows])
    assert len(batch.input_ids_T) == sum(p + max(0, c - 1) + max(0, r - 1) for p, c, r in LENGTHS)
    found = scorer(batch).token_logps_N
    torch.testing.assert_close(found.detach(), expected, atol=2e-5, rtol=1e-5)
    (found * weights[: len(found)]).sum().backward()
    alike(gradients(ours), expected_gradients)


@pytest.mark.parametrize("packs", [True, False])
def test_a_prompt_computed_once_gives_the_gradient_of_one_computed_twice(folder, packs):
    """And so does a model that takes no packed tokens, by padded groups."""
    weights = torch.rand(1000, generator=torch.Generator().manual_seed(1)) + 0.5
    models = [read_model(folder, torch.float32).eval() for _ in range(2)]
    once, twice = (CompletionScorer(model, model.config.vocab_size) for model in models)
    once.packs = packs
    rows = pairs()
    shared = collate_behind([prompt for prompt, *_ in rows], [sides for _, *sides in rows])
    apart = collate([prompt for prompt, *_ in rows for _ in range(2)], [side for _, *sides in rows for side in sides])
    assert len(shared.input_ids_T) < len(apart.input_ids_T)
    found = [scorer(batch).token_logps_N for scorer, batch in ((once, shared), (twice, apart))]
    torch.testing.assert_close(found[0], found[1], atol=2e-5, rtol=1e-5)
    for logps in found:
        (logps * weights[: len(logps)]).sum().backward()
    alike(*map(gradients, models))


def alike(ours, expected):
    assert ours.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-5 * float(gradient.abs().max()), rtol=1e-4, msg=name)


def test_sequences_one_behind_the_other_give_what_padded_groups_do(folder, monkeypatch):
    """As kernels of GPUs take them: further completions' own tokens as queries of the prompt's keys and their own."""
    weights = torch.rand(1000, generator=torch.Generator().manual_seed(1)) + 0.5
    models = [read_model(folder, torch.float32).eval() for _ in range(2)]
    rows = pairs()
    found = []
    for model, flash in zip(models, (False, True), strict=True):
        monkeypatch.setattr(packed_attention, "takes_flash", lambda *_, flash=flash: flash)
        monkeypatch.setattr(packed_attention, "varlen_attn", one_stretch_after_the_other)
        scorer = CompletionScorer(model, model.config.vocab_size)
        for batch in (
            collate_behind([prompt for prompt, *_ in rows], [sides for _, *sides in rows]),
            collate([prompt for prompt, *_ in rows], [side for _, side, _ in rows]),
        ):
            logps = scorer(batch).token_logps_N
            (logps * weights[: len(logps)]).sum().backward()
            found.append(logps.detach())
    torch.testing.assert_close(found[2:], found[:2], atol=2e-5, rtol=1e-5)
    alike(*map(gradients, models))


def test_where_no_prompt_is_shared_keys_are_the_tokens_as_they_come():
    apart = collate([[5, 6], [7]], [[1, 2, 3], []]).layout.stretches
    assert apart.keys is None
    assert (apart.query_ends.tolist(), apart.longest) == ([0, 4, 5], (4, 4))
    shared = collate_behind([[5, 6], [8]], [[[1, 2, 3], [4], [9, 9]], [[], [1, 2]]]).layout.stretches
    assert shared.query_ends.tolist() == [0, 4, 5, 6, 7]
    assert shared.key_ends.tolist() == [0, 4, 7, 8, 10]
    assert shared.keys.tokens_P.tolist() == [0, 1, 2, 3, 0, 1, 4, 5, 5, 6]
    assert shared.keys.places_T.tolist() == [0, 1, 2, 3, 6, 7, 9]
    assert shared.keys.shared_A.tolist() == [0, 1, 5]
    assert shared.keys.again_A.tolist() == [4, 5, 8]
