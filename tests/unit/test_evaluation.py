"""Fidelity, true KL and their errors against arithmetic over single records."""

from __future__ import annotations

import math

import pytest
import torch

from proxykd.config import ModelConfig
from proxykd.evaluation.fidelity import SealedTeacher, mass_shares, score_records, spearman
from proxykd.models.loading import initialise, load_scorer
from proxykd.models.parallel import Workers
from tests.unit.test_standard_errors import by_loops
from tests.unit.test_training import rows


@pytest.fixture
def models(tiny, tmp_path):
    config = ModelConfig(source=str(tiny), dtype="float32", method="full")
    pruned = initialise(config.model_copy(update={"drop_layers": (2,)}), tmp_path / "pruned")
    return load_scorer(tiny, config, trainable=False), load_scorer(pruned, config, trainable=False)


def log_softmax(scorer, row):
    """Float64 log-probs at the completion's positions of one unpadded record."""
    ids = torch.tensor([row["prompt_ids"] + row["completion_ids"]])
    logits = scorer.model(input_ids=ids).logits[0, len(row["prompt_ids"]) - 1 : -1, : scorer.vocabulary]
    return logits.double().log_softmax(-1)


def test_fidelity_and_true_kl_are_those_of_single_records(models):
    teacher, model = models
    held_out = rows(9, seed=4)
    scores = score_records(model, held_out, Workers(), 40, SealedTeacher(teacher))
    for i, row in enumerate(held_out):
        ours, theirs = log_softmax(model, row), log_softmax(teacher, row)
        labels = torch.tensor(row["completion_ids"])
        assert scores.nll[i] == pytest.approx(-ours.gather(1, labels[:, None]).sum().item(), abs=1e-3)
        assert scores.agreements[i] == (ours.argmax(-1) == labels).sum().item()
        assert scores.true_kl[i] == pytest.approx((theirs.exp() * (theirs - ours)).sum().item(), abs=1e-3)
    fidelity = scores.fidelity()
    tokens = sum(len(row["completion_ids"]) for row in held_out)
    assert fidelity.held_out_nll == pytest.approx(sum(scores.nll) / tokens)
    whole = [found == len(row["completion_ids"]) for found, row in zip(scores.agreements, held_out, strict=True)]
    assert fidelity.sequence_agreement == sum(whole) / 9
    own = [{**row, "completion_ids": log_softmax(model, row).argmax(-1)[:1].tolist()} for row in held_out[:3]]
    greedy = score_records(model, [*own, *held_out[3:4]], Workers(), 40)
    assert greedy.fidelity().sequence_agreement == 0.75
    assert (fidelity.records, fidelity.tokens) == (9, tokens)


def test_a_teacher_is_at_no_distance_from_itself_and_runs_once_for_all_models(models):
    teacher, model = models
    held_out = rows(5, seed=4)
    sealed = SealedTeacher(teacher)
    assert score_records(model, held_out, Workers(), 40).true_kl is None
    first = score_records(model, held_out, Workers(), 40, sealed).true_kl
    teacher.hidden = None  # the kept hidden states serve the next model
    assert score_records(model, held_out, Workers(), 40, sealed).true_kl == first
    fresh = SealedTeacher(model)
    assert max(score_records(model, held_out, Workers(), 40, fresh).true_kl) < 1e-5


def test_errors_are_of_prompts_not_of_records(models):
    """Rows of one prompt, by its key, are one cluster in both errors."""
    teacher, model = models
    held_out = [{**row, "prompt_key": f"p{i // 3}"} for i, row in enumerate(rows(9, seed=4))]
    scores = score_records(model, held_out, Workers(), 40, SealedTeacher(teacher))
    fidelity = scores.fidelity()
    keys = [row["prompt_key"] for row in held_out]
    assert (fidelity.records, fidelity.prompts) == (9, 3)
    assert fidelity.stderr == pytest.approx(by_loops(scores.nll, scores.tokens, keys)[1])
    kl, stderr = by_loops(scores.true_kl, scores.tokens, keys)
    assert scores.mean_true_kl().model_dump() == {
        "kl": pytest.approx(kl), "stderr": pytest.approx(stderr), "tokens": sum(scores.tokens)
    }  # fmt: skip


def test_mass_shares_count_tokens_whose_top_k_exceed_095(models):
    _, model = models
    held_out = rows(4, seed=7)
    facts = mass_shares(model, held_out, 40, top_k=300)
    masses = torch.cat([log_softmax(model, row).exp().sort(descending=True).values.cumsum(-1) for row in held_out])
    expected = (masses[:, :300] > 0.95).double().mean(0)
    assert facts.k == list(range(1, 301))
    assert sum(abs(a - b) > 1e-9 for a, b in zip(facts.share, expected.tolist(), strict=True)) <= 2
    assert facts.share == sorted(facts.share)


def test_spearman_by_ranks():
    assert spearman([1, 2, 3, 4], [10, 20, 25, 99]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    a, b = [1.0, 5.0, 2.0, 2.0, 9.0], [2.0, 4.0, 4.0, 1.0, 3.0]
    ranks_a, ranks_b = [1, 4, 2.5, 2.5, 5], [2, 4.5, 4.5, 1, 3]
    covariance = sum((x - 3) * (y - 3) for x, y in zip(ranks_a, ranks_b, strict=True))
    norms = math.sqrt(sum((x - 3) ** 2 for x in ranks_a) * sum((y - 3) ** 2 for y in ranks_b))
    assert spearman(a, b) == pytest.approx(covariance / norms)
    assert spearman([1, 1, 1], [1, 2, 3]) is None
    assert spearman([1, 2], [1, 2]) is None
