"""A round's pairs after it, on two workers. In a file of its own: what spawns imports little."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.multiprocessing as mp

from actors.after_round import pairs_after_round
from proxykd.config import AlignmentConfig
from proxykd.parallel import Workers
from tests.unit.test_training import make, rows


def judge(tiny, workers):
    """Seven pairs in batches of four and three, of which two workers have unequal shares."""
    trainer, pairs = make(tiny, 40, workers), rows(7)
    keys = ("reference_chosen", "reference_rejected")
    training = SimpleNamespace(
        notes={"references": {pair["index"]: {key: pair[key] for key in keys} for pair in pairs}},
        total_steps=2,
        trainer=trainer,
        first_epoch=lambda: iter([pairs[:4], pairs[4:]]),
    )
    config = SimpleNamespace(alignment=AlignmentConfig())
    worker = SimpleNamespace(workers=workers, config=config, task={"records": 7}, progress=lambda *_: None)
    return pairs_after_round(worker, trainer.scorer, training)


def _worker(rank, world, store, tiny, out):
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world, init_method=f"file://{store}")
    found = judge(tiny, Workers.current("fsdp2", torch.device("cpu")))
    torch.save(found, f"{out}-{rank}")
    dist.barrier()
    dist.destroy_process_group()


def test_two_workers_with_sharded_layers_say_the_same_as_one(tiny, tmp_path):
    one, out = judge(tiny, Workers()), tmp_path / "two"
    mp.spawn(_worker, args=(2, str(tmp_path / "store"), tiny, str(out)), nprocs=2)
    for rank in range(2):
        two = torch.load(f"{out}-{rank}")
        assert two["pairs_after"] == one["pairs_after"] == 7
        assert two["dpo_accuracy_after"] == one["dpo_accuracy_after"]
        assert two["margin_mean_after"] == pytest.approx(one["margin_mean_after"], abs=1e-3)
