"""The plan's memory against what training steps hold, on two gloo workers that stand for two GPUs."""

from __future__ import annotations

import json

import pytest
import torch
import torch.multiprocessing as mp

from benchmarks.step_peaks import CASES as ALL
from benchmarks.step_peaks import WORKERS, measure, planned, write_shape
from proxykd.costs.memory_plan import GIB

TOKENS = 512
CASES = [case for case in ALL if case.terms == 2 or (case.method, case.dtype) != ("lora", "float32")]


def _worker(rank, world, store, shape, out):
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world, init_method=f"file://{store}")
    found = [measure(case, shape, TOKENS) for case in CASES]
    (out / f"{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """(shape, bytes by worker and case)."""
    folder = tmp_path_factory.mktemp("peaks")
    shape = write_shape(
        folder / "shape", hidden_size=128, intermediate_size=384, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=512,
    )  # fmt: skip
    mp.spawn(_worker, args=(WORKERS, str(folder / "store"), shape, folder), nprocs=WORKERS)
    return shape, [json.loads((folder / f"{rank}.json").read_text()) for rank in range(WORKERS)]


@pytest.mark.parametrize("number", range(len(CASES)), ids=[case.name.replace(" ", "") for case in CASES])
def test_a_step_holds_what_is_planned(measured, number):
    """At most the plan's sum, and no less than that without working memory, which is a bound and not a count."""
    shape, found = measured
    plan = planned(CASES[number], shape, TOKENS)
    for worker in found:
        assert plan.total - plan.parts["working"] <= worker[number] / GIB <= plan.total
