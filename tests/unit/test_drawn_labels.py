"""Labels that are drawn: unbiased, at the bytes of a top-K, the same whenever they are drawn, refused where they do not fit."""

from __future__ import annotations

import math

import pytest
import torch

from proxykd.config import ModelConfig
from proxykd.data.corpus_store import manifest, slice_shards
from proxykd.data.row_ranges import read_shard_rows
from proxykd.data.soft_labels import LabelSource, unpack
from proxykd.errors import IntegrityError
from proxykd.evaluation.soft_label_statistics import label_statistics
from proxykd.losses.drawn import counted, draw_ids
from proxykd.losses.sequence_losses import kl_tail
from proxykd.losses.top_k import TopK
from proxykd.models.batching import collate
from proxykd.models.loading import load_scorer
from proxykd.runs.storage import read_table
from proxykd.text.tokenizer import load_tokenizer
from proxykd.training.loops.score import ScoreTask, score
from tests.stage_ranks import Ranks, make_run

DRAWN = {"source": "trainer", "method": "drawn", "top_k": 4}


def student_at(logits_V, ids_NK):
    """The student's log-probs at the ids and outside of them, at every row alike."""
    whole = logits_V.logsumexp(0)
    logits_NV = logits_V.expand(len(ids_NK), -1)
    tail_N = logits_NV.scatter(1, ids_NK, -torch.inf).logsumexp(1) - whole
    return TopK(ids_NK, logits_NV.gather(1, ids_NK) - whole, tail_N)


def test_many_draws_are_the_distribution_on_average_and_so_is_the_gradient():
    """Against the whole distribution of a vocabulary of 6, within five standard errors of 40,000 sets of 4 draws."""
    times, k = 40_000, 4
    p = torch.tensor([0.55, 0.25, 0.1, 0.06, 0.04, 0.0], dtype=torch.float64)
    uniforms = torch.rand(times, k, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    drawn = counted(draw_ids(p.log().expand(times, -1), uniforms), 6)
    shares = torch.zeros(times, 6).scatter_add(1, drawn.ids_NK, drawn.logps_NK.exp())
    assert shares.sum(1).tolist() == pytest.approx([1.0] * times)
    error = (p * (1 - p) / (k * times)).sqrt()
    assert ((shares.double().mean(0) - p).abs() <= 5 * error).all()
    logits = torch.tensor([0.3, -0.2, 1.0, 0.1, -1.0, 0.4], dtype=torch.float64, requires_grad=True)
    kl_tail(drawn, student_at(logits, drawn.ids_NK)).double().mean().backward()
    gradient = logits.grad.clone()
    expected = logits.detach().softmax(0) - p
    assert ((gradient - expected).abs() <= 5 * error + 1e-6).all()


def test_the_loss_is_the_cross_entropy_to_what_was_drawn_less_its_entropy():
    drawn = counted(torch.tensor([[2, 0, 2, 2]]), 6)
    assert drawn.ids_NK.tolist() == [[2, 0, 1, 3]]
    assert drawn.logps_NK.exp().tolist() == [pytest.approx([0.75, 0.25, 0.0, 0.0])]
    assert drawn.tail_logmass_N.tolist() == [-math.inf]
    logits = torch.tensor([0.3, -0.2, 1.0, 0.1, -1.0, 0.4])
    q = logits.softmax(0).tolist()
    expected = 0.75 * math.log(0.75 / q[2]) + 0.25 * math.log(0.25 / q[0])
    assert kl_tail(drawn, student_at(logits, drawn.ids_NK)).item() == pytest.approx(expected, rel=1e-5)


def test_a_draw_is_where_its_number_falls_and_never_a_token_without_mass():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, math.log(3.0), -torch.inf]])
    ends = torch.tensor([[0.0, 0.2499, 0.25, 1 - 2**-53]], dtype=torch.float64)
    assert draw_ids(logits, ends).tolist() == [[1, 1, 3, 3]]


def test_all_of_a_tiny_vocabulary_may_be_drawn():
    assert counted(torch.tensor([[1, 1, 0]]), 3).ids_NK.tolist() == [[1, 0, 2]]


def test_a_models_draws_are_from_its_own_distribution_and_its_log_probs_what_it_scores(tiny):
    scorer = load_scorer(tiny, ModelConfig(source=str(tiny), dtype="float32", method="full"))
    batch = collate([[1, 5], [1]], [[7, 8, 2], [9, 2]])
    uniforms = torch.rand(5, 4, dtype=torch.float64)
    drawn = scorer.draw(batch, uniforms)
    with torch.no_grad():
        p = scorer.head().logits(scorer.hidden(batch)).double().softmax(-1)
    for t in range(5):
        reached, ids = 0.0, []
        for token, mass in enumerate(p[t].tolist()):
            ids += [token] * sum(reached <= u < reached + mass for u in uniforms[t].tolist())
            reached += mass
        kept = drawn.top.logps_NK[t] > -torch.inf
        told = zip(drawn.top.ids_NK[t][kept].tolist(), drawn.top.logps_NK[t][kept].exp().tolist(), strict=True)
        assert dict(told) == {token: pytest.approx(ids.count(token) / 4) for token in ids}
    torch.testing.assert_close(drawn.token_logps_N, scorer.score(batch).token_logps_N)
    nothing = scorer.draw(collate([[1, 5]], [[]]), uniforms[:0])
    assert nothing.top.ids_NK.shape == (0, 4)


@pytest.fixture(scope="module")
def drawn(tiny, tmp_path_factory):
    """A run that has drawn its labels from the proxy's base."""
    run = make_run(tiny, tmp_path_factory.mktemp("drawn"), score=DRAWN)
    draw(run, "drawn")
    return run


def source_of(run, method):
    return LabelSource("base", manifest(run)["tokenizer"], len(load_tokenizer(run.models / "proxy")), 4, method)


def draw(run, method):
    Ranks(str(run.root))("score", score, ScoreTask(None, source_of(run, method)), [])
    return shards_of(run)


def shards_of(run):
    return {path.name: path.read_bytes() for path in sorted(run.soft_labels("base").glob("*.parquet"))}


def test_what_a_death_took_is_drawn_as_it_was(drawn):
    before = shards_of(drawn)
    assert len(before) > 2
    for path in list(drawn.soft_labels("base").glob("shard-00001*")):
        path.unlink()
    assert len(shards_of(drawn)) == len(before) - 1
    assert draw(drawn, "drawn") == before


def test_another_seed_draws_others(drawn, tiny, tmp_path):
    other = make_run(tiny, tmp_path, score=DRAWN, seed=4)
    draw(other, "drawn")

    def labels(run):
        source = source_of(run, "drawn")
        rows = [row for name in shards_of(run) for row in read_table(run.soft_labels("base") / name).to_pylist()]
        return {row["record_id"]: unpack(row, source).top_ids_TK.tolist() for row in rows}

    ours, theirs = labels(drawn), labels(other)
    assert ours.keys() == theirs.keys()
    assert all(ours[key] != theirs[key] for key in ours)


def test_draws_take_the_bytes_of_a_top_k_and_have_the_proxys_log_probs(drawn, tiny, tmp_path):
    other = make_run(tiny, tmp_path, score={**DRAWN, "method": "top_k"})
    draw(other, "top_k")
    for path in slice_shards(drawn, "distillation"):
        ours, theirs = (read_table(run.soft_labels("base") / path.name).to_pylist() for run in (drawn, other))
        assert [len(row["packed"]) for row in ours] == [len(row["packed"]) for row in theirs]
        sums = [[row["sequence_logp"] for row in rows] for rows in (ours, theirs)]
        assert sums[0] == pytest.approx(sums[1], abs=1e-4)
        for row, record in zip(ours, read_shard_rows(path), strict=True):
            label = unpack(row, source_of(drawn, "drawn"))
            shares = torch.tensor(label.top_logps_TK).exp() * 4
            assert torch.allclose(shares, shares.round(), atol=1e-12)
            assert shares.sum(1).tolist() == pytest.approx([4.0] * len(record["completion_ids"]))
            assert (label.tail_logmass_T == -math.inf).all()
    shards = [drawn.soft_labels("base") / name for name in shards_of(drawn)]
    told = label_statistics(shards, source_of(drawn, "drawn"), "sequence_sum")
    assert (told.method, told.mass_at_k) == ("drawn", {})
    with pytest.raises(IntegrityError, match="delete it and resume"):
        label_statistics(shards, source_of(drawn, "top_k"), "sequence_sum")
