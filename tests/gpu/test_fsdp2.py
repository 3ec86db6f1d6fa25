"""A sharded model of one rank takes the steps of a plain one."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from proxykd.config import AlignmentConfig, TrainConfig
from proxykd.models.parallel import Workers, whole
from proxykd.training.stage_losses import AlignmentLoss
from proxykd.training.trainer import Trainer
from tests.gpu import models

STEPS = 3
APART = 1e-2
"""Of what three steps of Adam have changed. The same kernels run, but additions without order (of gradients of shared
prompts and embeddings) move a gradient by its last bits, and Adam makes of each gradient, be it ever so small, a step of
its learning rate: a few that are next to nothing may turn about."""


@pytest.fixture(scope="module")
def nccl(tmp_path_factory):
    store = tmp_path_factory.mktemp("nccl") / "store"
    torch.cuda.set_device(0)
    dist.init_process_group("nccl", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def trained(mode: str, lora: bool):
    """Steps as they were seen, and what they have changed."""
    device = torch.device(models.CARD.type, 0)
    scorer = models.llama(torch.bfloat16 if lora else torch.float32, models.CPU, lora)
    workers = Workers.current(mode, device)
    scorer = workers.place(scorer)
    trainer = Trainer(scorer, TrainConfig(learning_rate=1e-4), workers, micro_batch_tokens=1024, total_steps=STEPS)
    before = [whole(p).cpu().clone() for p in trainer.parameters]
    rows = models.rows(8)
    steps = [trainer.step(rows, AlignmentLoss(rows, AlignmentConfig())) for _ in range(STEPS)]
    after = [whole(p).cpu() for p in trainer.parameters]
    return steps, torch.cat([(a - b).double().flatten() for a, b in zip(after, before, strict=True)])


@pytest.mark.parametrize("lora", [True, False], ids=["lora in bfloat16", "full in float32"])
def test_one_rank_of_fsdp2_is_a_plain_step(nccl, lora, figure):
    (sharded, moved), (plain, expected) = trained("fsdp2", lora), trained("ddp", lora)
    for one, other in zip(sharded, plain, strict=True):
        assert one.losses == pytest.approx(other.losses, rel=1e-3)
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-3)
    figure(f"weights moved alike to {models.apart(moved, expected):.1e}")
    assert models.apart(moved, expected) < APART
