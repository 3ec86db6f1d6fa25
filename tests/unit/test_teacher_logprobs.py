"""The log-probs of a grey box, on our tokens, against arithmetic over the whole vocabulary."""

from __future__ import annotations

import math

import pytest
import torch

from proxykd.config import AlignmentConfig, ModelConfig
from proxykd.data.teacher_logprobs import TeacherAt, TokensByText
from proxykd.evaluation.fidelity import teacher_kl
from proxykd.models.batching import collate
from proxykd.models.loading import load_scorer
from proxykd.models.parallel import Workers
from proxykd.text.chat import ChatFormat
from proxykd.training.stage_losses import AlignmentLoss
from tests.unit.test_training import rows as training_rows


def told(tokens: list[str], *tops: list[tuple[str, float]]) -> list[dict]:
    return [{"token": token, "logprob": -0.1, "top": list(top)} for token, top in zip(tokens, tops, strict=True)]


def test_places_are_where_a_token_of_each_begins_and_texts_are_one_token_of_ours(tokenizer):
    texts = TokensByText(ChatFormat(tokenizer))
    completion = "the red dog"
    ids = tokenizer.encode(completion, add_special_tokens=False)
    assert [tokenizer.decode([i]) for i in ids] == ["the", " red", " dog"]
    tokens = told(
        ["the", " re", "d", " dog"],
        [("the", -0.2), ("a", -2.0), ("never one token of ours", -3.0)],
        [(" re", -0.5), (" red", -1.0)],
        [("d", -0.1)],
        [(" dog", -0.3), (" dog", -0.3), (" cat", -1.5)],
    )
    places = texts.places(completion, tokens, len(ids))
    assert [place["position"] for place in places] == [0, 1, 2]
    assert places[0]["ids"] == [texts.id_of("the"), texts.id_of("a")]
    assert places[0]["logps"] == [-0.2, -2.0]
    assert texts.id_of(" red") in places[1]["ids"]
    assert places[2]["logps"] == [-0.3, -1.5]
    assert texts.places("another text", tokens, 3) == []
    assert [place["position"] for place in texts.places(completion, tokens, 2)] == [0, 1]


def scorer_of(tiny):
    return load_scorer(tiny, ModelConfig(source=str(tiny), dtype="float32"), seed=0)


def grey_rows() -> list[dict]:
    made = training_rows(5)
    for index, row in enumerate(made):
        places = [
            {"position": at, "ids": [7 + at, 50 + index, 90][: 1 + at % 3], "logps": [-0.7, -1.6, -2.5][: 1 + at % 3]}
            for at in range(0, len(row["completion_ids"]), 2)
        ]
        row["teacher_top"] = places if index else None  # the first is a black box's
    return made


def by_hand(scorer, row: dict) -> float:
    """sum_k p (log p - log q) + tail, from all logits of a plain forward pass."""
    ids = torch.tensor([row["prompt_ids"] + row["completion_ids"]])
    logps = scorer.model(input_ids=ids).logits[0, :, : scorer.vocabulary].double().log_softmax(-1)
    first, total = len(row["prompt_ids"]) - 1, 0.0
    for place in row["teacher_top"] or []:
        q = logps[first + place["position"]].exp()
        p = [math.exp(value) for value in place["logps"]]
        inside = float(sum(q[i] for i in place["ids"]))
        total += sum(v * (math.log(v) - math.log(float(q[i]))) for v, i in zip(p, place["ids"], strict=True))
        total += (1 - sum(p)) * math.log((1 - sum(p)) / (1 - inside))
    return total


def test_the_kl_is_that_of_the_merged_outcomes(tiny):
    scorer, rows = scorer_of(tiny), grey_rows()
    places = sum(len(row["teacher_top"] or []) for row in rows)
    with torch.no_grad():
        expected = sum(by_hand(scorer, row) for row in rows) / places
    found = teacher_kl(scorer, rows, Workers(), micro_batch_tokens=64)
    assert found is not None
    assert found.kl == pytest.approx(expected, rel=1e-5)
    assert found.tokens == places
    assert teacher_kl(scorer, training_rows(3), Workers(), 64) is None


def test_a_teacher_that_is_the_model_itself_is_at_distance_0(tiny):
    scorer, [row] = scorer_of(tiny), training_rows(1)
    batch = collate([row["prompt_ids"]], [row["completion_ids"]])
    top = scorer.score(batch, 4).top
    row["teacher_top"] = [
        {"position": at, "ids": ids.tolist(), "logps": logps.tolist()}
        for at, (ids, logps) in enumerate(zip(top.ids_NK, top.logps_NK, strict=True))
    ]
    found = teacher_kl(scorer, [row], Workers(), 64)
    assert found is not None
    assert found.kl == pytest.approx(0.0, abs=1e-5)


def test_alignment_uses_it_by_its_weight_alone(tiny):
    scorer, rows = scorer_of(tiny), grey_rows()
    plain = AlignmentLoss(rows, AlignmentConfig())
    grey = AlignmentLoss(rows, AlignmentConfig(), 0.5)
    assert plain.terms == ("nll", "dpo")
    before, _ = plain(scorer, rows)
    after, _ = grey(scorer, rows)
    assert set(after) == {"nll", "dpo", "teacher_kl"}
    for term in before:
        assert float(after[term]) == pytest.approx(float(before[term]), rel=1e-6)
    found = teacher_kl(scorer, rows, Workers(), 512)
    assert found is not None
    assert float(after["teacher_kl"]) == pytest.approx(0.5 * found.kl, rel=1e-5)
    halves = [grey(scorer, part)[0]["teacher_kl"] for part in (rows[:2], rows[2:])]
    assert float(sum(halves)) == pytest.approx(float(after["teacher_kl"]), rel=1e-5)
    after["teacher_kl"].backward()
    assert any(float(p.grad.abs().sum()) > 0 for p in scorer.parameters() if p.grad is not None)


def test_fillers_are_no_outcomes(tiny):
    row = {"completion_ids": [5, 6], "teacher_top": [{"position": 0, "ids": [0, 1, 2], "logps": [-1.0, -2.0, -3.0]},
                                                     {"position": 1, "ids": [1], "logps": [-0.5]}]}  # fmt: skip
    teacher = TeacherAt([row])
    assert teacher.top.ids_NK[1].unique().numel() == 3
    assert teacher.top.logps_NK[1].tolist() == [-0.5, -math.inf, -math.inf]
    assert float(teacher.top.tail_logmass_N[1]) == pytest.approx(math.log(1 - math.exp(-0.5)))
