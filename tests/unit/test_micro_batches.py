"""The plan of a global batch: every row once, within the budget, and work of like size for every worker."""

from __future__ import annotations

import random

import pytest

from benchmarks.lengths import lengths as corpus_lengths
from proxykd.models.micro_batches import plan_micro_batches, share_of_worker


def loads(plan, lengths):
    return [sum(lengths[i] for i in part) for part in plan]


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
@pytest.mark.parametrize("rows", [1, 7, 32, 500])
def test_every_row_is_in_one_micro_batch_within_the_budget_and_workers_have_as_many(rows, workers):
    draw = random.Random(rows)
    lengths = [draw.choice((3, 40, 90, 250)) for _ in range(rows)]
    plan = plan_micro_batches(lengths, 200, workers)
    assert sorted(i for part in plan for i in part) == list(range(rows))
    assert all(len(part) <= 1 or load <= 200 for part, load in zip(plan, loads(plan, lengths), strict=True))
    shares = [share_of_worker(plan, rank, workers) for rank in range(workers)]
    assert len({len(share) for share in shares}) == 1
    assert sum(map(len, shares)) == len(plan)
    assert max(loads(plan[:workers], lengths)) == max(loads(plan, lengths))


@pytest.mark.parametrize("workers", [2, 3, 4, 8])
def test_workers_have_work_of_like_size_in_tokens(workers):
    draw = random.Random(workers)
    lengths = [draw.randint(50, 1024) for _ in range(4 * workers)]
    plan = plan_micro_batches(lengths, 8192, workers)
    of_worker = [sum(loads(share_of_worker(plan, rank, workers), lengths)) for rank in range(workers)]
    assert len(plan) == workers
    assert min(of_worker) >= 0.9 * max(of_worker)


def test_tokens_count_and_not_rows():
    assert plan_micro_batches([1000, 250, 250, 250, 250], 8192, 2) == [[0], [1, 2, 3, 4]]


def test_no_worker_has_the_larger_ones_of_every_turn():
    lengths = list(range(400, 416))  # each above the budget, and so alone
    plan = plan_micro_batches(lengths, 100, 4)
    of_worker = [sum(loads(share_of_worker(plan, rank, 4), lengths)) for rank in range(4)]
    assert max(of_worker) - min(of_worker) <= 3


def test_a_budget_that_rows_fill_badly_takes_a_micro_batch_more():
    assert loads(plan_micro_batches([60, 60, 60], 100), [60, 60, 60]) == [60, 60, 60]
    assert loads(plan_micro_batches([50, 50, 50, 50], 100), [50] * 4) == [100, 100]
    assert plan_micro_batches([], 100) == []
    assert plan_micro_batches([7], 100, 3) == [[0], [], []]


@pytest.mark.parametrize("sides", [1, 2])
def test_nearly_all_of_eight_workers_time_goes_into_tokens(sides):
    """On lengths like OpenOrca's, global batches of 32 and 8,192 tokens a micro-batch."""
    drawn = [sum(row[: 1 + sides]) for row in corpus_lengths(32 * 50)]
    work = slowest = 0
    for start in range(0, len(drawn), 32):
        lengths = drawn[start : start + 32]
        plan = plan_micro_batches(lengths, 8192, 8)
        slowest += max(sum(loads(share_of_worker(plan, rank, 8), lengths)) for rank in range(8))
        work += sum(lengths)
    assert work / (8 * slowest) > 0.95
