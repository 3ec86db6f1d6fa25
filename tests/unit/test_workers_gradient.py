"""The gradient of a global batch does not depend on the number of workers: simulated ranks, one after the other."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from proxykd.config import AlignmentConfig, DistillationConfig
from proxykd.models.parallel import Workers
from proxykd.training.stage_losses import AlignmentLoss, DistillationLoss, SftLoss
from tests.unit.test_training import make, rows

LOSSES = {
    "sft": SftLoss,
    "align": lambda batch: AlignmentLoss(batch, AlignmentConfig()),
    "distil": lambda batch: DistillationLoss(batch, DistillationConfig()),
}
PRECISION = {torch.float32: 1e-5, torch.float64: 1e-10}


@dataclass(frozen=True)
class Simulated(Workers):
    """A rank that keeps its own sums, for the test to add up."""

    def sum(self, tensor):
        return tensor

    def sum_gradients(self, parameters):
        return None


def gradient_of(trainer, world, mode, loss, batch):
    """Summed over the ranks, flattened; with losses and metrics, and each rank's passes."""
    total, sums, passes = 0.0, 0.0, []
    for rank in range(world):
        trainer.workers = Simulated(rank, world, mode)
        parts = trainer.micro_batches(batch)
        losses, metrics = trainer._accumulate(parts, loss, loss.terms)
        scale = trainer.workers.gradient_scale
        total += torch.cat([g.flatten() for g in trainer._take_gradients()]) / scale
        sums += torch.tensor([*losses.values(), *metrics.values()], dtype=torch.float64)
        passes.append(len(parts))
    return total, sums, passes


@pytest.mark.parametrize("dtype", PRECISION)
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_and_losses_are_those_of_one_worker(tiny, name, dtype):
    trainer = make(tiny, 64)
    trainer.scorer.to(dtype)
    batch = [{**row, "length": len(row["prompt_ids"]) + 2 * 10} for row in rows(21)]
    one, sums, _ = gradient_of(trainer, 1, "ddp", LOSSES[name](batch), batch)
    assert one.dtype == dtype
    assert float(one.norm()) > 1e-3
    for world, mode in ((2, "fsdp2"), (3, "ddp"), (4, "fsdp2"), (8, "ddp")):
        found, found_sums, passes = gradient_of(trainer, world, mode, LOSSES[name](batch), batch)
        assert float((found - one).norm() / one.norm()) < PRECISION[dtype]
        assert torch.allclose(found_sums, sums, rtol=PRECISION[dtype])
        assert mode == "ddp" or len(set(passes)) == 1  # whose collectives wait for all


def test_sharded_workers_without_rows_pass_over_others(tiny):
    trainer, batch = make(tiny, 64), rows(3)
    one, sums, _ = gradient_of(trainer, 1, "ddp", SftLoss(batch), batch)
    found, found_sums, passes = gradient_of(trainer, 8, "fsdp2", SftLoss(batch), batch)
    assert passes == [1] * 8
    torch.testing.assert_close(found, one, atol=1e-5 * float(one.abs().max()), rtol=1e-4)
    torch.testing.assert_close(found_sums, sums)
