"""Estimates, prices and budgets, against a real HTTP server."""

from __future__ import annotations

import pytest

from proxykd.collection.budget import BudgetExhausted, Ledger, Usage, worst_case
from proxykd.collection.job import Collection
from proxykd.collection.requests import requests_for
from proxykd.config import BudgetConfig, PriceConfig
from proxykd.text.corpus import read_prompts
from tests.collecting import PROMPTS, config_for, whole
from tests.teacher_stub import RunningStub, teacher_stub


def test_the_budget_holds_with_everything_in_flight(prompts, tmp_path):
    worst = worst_case(requests_for(read_prompts(prompts), config_for(RunningStub(9)).teacher, 7)[0], 32)
    budget = 5 * worst.tokens
    with teacher_stub(latency_s=0.05) as stub:
        with pytest.raises(BudgetExhausted, match=rf"the budget of {budget} tokens does not bear one more request"):
            whole(tmp_path / "out", config_for(stub, budget={"tokens": budget}), prompts)
        stats = stub.stats()
        assert budget - worst.tokens < stats["tokens"] <= budget
        assert 1 < stats["most_in_flight"] <= 6  # and the question for these numbers
        whole(tmp_path / "out", config_for(stub, budget={"tokens": 100_000}), prompts)
        assert stub.stats()["answered_twice"] == 0


def test_the_cost_is_tokens_times_prices(prompts, tmp_path):
    with teacher_stub() as stub:
        summary = whole(tmp_path / "out", config_for(stub, prices={"prompt": 3.0, "completion": 15.0}), prompts)
        tokens = stub.stats()["tokens"]
    assert summary["prompt_tokens"] + summary["completion_tokens"] == tokens
    assert summary["cost"] == pytest.approx((3 * summary["prompt_tokens"] + 15 * summary["completion_tokens"]) / 1e6)
    ledger = Ledger(BudgetConfig(cost=0.01), PriceConfig(prompt=3.0, completion=15.0, currency="EUR"))
    assert "the budget of 0.01 EUR does not bear" in ledger.exhausted()
    assert ledger.fits(Usage(0, 666))
    assert not ledger.fits(Usage(0, 667))
    ledger.reserve(Usage(0, 600))
    assert not ledger.fits(Usage(0, 67))
    ledger.lose(Usage(0, 600))
    assert ledger.unanswered_cost == pytest.approx(0.009)
    assert not ledger.fits(Usage(0, 67))


def test_the_estimate_counts_what_is_missing(stub, prompts, tmp_path):
    euros = {"prompt": 1.0, "completion": 10.0, "currency": "EUR"}
    config = config_for(stub, prices=euros, requests_per_minute=30)
    estimate = Collection(tmp_path / "out", config, read_prompts(prompts)).estimate()
    assert (estimate["requests"], estimate["completion_tokens_at_most"], estimate["minutes"]) == (
        PROMPTS,
        32 * PROMPTS,
        2,
    )
    assert estimate["prompt_tokens"] == round(sum(len(f"What is the colour of item {n}?") for n in range(PROMPTS)) / 4)
    assert estimate["cost"] == pytest.approx((estimate["prompt_tokens"] + 10 * 32 * PROMPTS) / 1e6)
    assert estimate["currency"] == "EUR"
    tokens = estimate["prompt_tokens"] + estimate["completion_tokens_at_most"]
    slower = config_for(stub, tokens_per_minute=tokens / 7, requests_per_minute=30)
    assert Collection(tmp_path / "out", slower, read_prompts(prompts)).estimate()["minutes"] == pytest.approx(7)
    assert not (tmp_path / "out").exists()


def test_a_hedge_answers_once_and_both_are_accounted_for(prompts, tmp_path):
    with teacher_stub(faults=["hang"], share=0.3) as stub:
        summary = whole(tmp_path / "out", config_for(stub, hedge_after_s=0.2, timeout_s=10.0), prompts)
        assert stub.stats()["faults"]["hang"] > 5
    assert summary["records"] == PROMPTS
    assert summary["retried"] == 0
    assert summary["unanswered_tokens_at_most"] > 0
