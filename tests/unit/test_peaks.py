"""The plan's memory against what training steps hold, on two gloo workers that stand for two GPUs."""

from __future__ import annotations

from functools import partial

import pytest

from benchmarks.step_peaks import CASES as ALL
from benchmarks.step_peaks import WORKERS, measure, planned, write_shape
from proxykd.costs.memory_plan import GIB
from tests.forks import on_ranks

TOKENS = 512
CASES = [case for case in ALL if case.terms == 2 or (case.method, case.dtype) != ("lora", "float32")]


def measure_all(shape):
    return [measure(case, shape, TOKENS) for case in CASES]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """(shape, bytes by worker and case)."""
    folder = tmp_path_factory.mktemp("peaks")
    shape = write_shape(
        folder / "shape", hidden_size=128, intermediate_size=384, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=512,
    )  # fmt: skip
    return shape, on_ranks(WORKERS, partial(measure_all, shape), folder / "ranks")


@pytest.mark.parametrize("number", range(len(CASES)), ids=[case.name.replace(" ", "") for case in CASES])
def test_a_step_holds_what_is_planned(measured, number):
    """At most the plan's sum, and no less than that without working memory, which is a bound and not a count."""
    shape, found = measured
    plan = planned(CASES[number], shape, TOKENS)
    for worker in found:
        assert plan.total - plan.parts["working"] <= worker[number] / GIB <= plan.total
