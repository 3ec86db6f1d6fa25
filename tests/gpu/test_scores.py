"""Log-probs of completions and their gradients: on the GPU what they are on a CPU.

float32 on both: a sum of n products in another order moves by about 6e-8 sqrt(n), 2e-6 at n = 1,536; some thirty such
sums lie between a token and its log-prob, sqrt(30) * 2e-6 = 1e-5; allowed is twice that.

bfloat16: how far its roundings carry is the model's affair, so that the CPU's own distance from float32 is the measure.
Kernels round in other places, none more often than the CPU's: allowed is twice the CPU's distance.
"""

from __future__ import annotations

import pytest
import torch

from proxykd.models.batching import collate_behind
from tests.gpu import models

FLOAT32_APART = 2e-5
TOP_K = 10


def logps_and_gradient(dtype: torch.dtype, device: torch.device, lora: bool = True):
    """Of labels, some ids and the tail: one column after the other; and the gradient of their weighted sum."""
    scorer = models.llama(dtype, device, lora)
    rows = models.rows(6)
    batch = collate_behind([r["prompt_ids"] for r in rows], [(r["completion_ids"], r["rejected_ids"]) for r in rows])
    ids_NK = (batch.labels_N[:, None] + torch.arange(TOP_K)) % models.VOCABULARY
    scores = scorer(batch.to(device), ids_NK.to(device))
    columns = torch.cat([scores.token_logps_N[:, None], scores.top.logps_NK, scores.top.tail_logmass_N[:, None]], 1)
    weights = torch.rand(columns.shape, generator=torch.Generator().manual_seed(2)).to(device)
    (columns * weights).mean().backward()
    return columns.detach().cpu(), models.gradient(scorer)


@pytest.fixture(scope="module")
def expected():
    return logps_and_gradient(torch.float32, models.CPU)


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_float32_is_the_cpus_float32(lora, expected, figure):
    found = logps_and_gradient(torch.float32, models.CARD, lora)
    expected = expected if lora else logps_and_gradient(torch.float32, models.CPU, lora)
    distances = [models.apart(*both) for both in zip(found, expected, strict=True)]
    figure("log-probs {:.1e}, gradient {:.1e} from the CPU's".format(*distances))
    assert max(distances) < FLOAT32_APART


def test_bfloat16_is_as_near_to_float32_as_the_cpus_bfloat16(expected, figure):
    here, there = (logps_and_gradient(torch.bfloat16, device) for device in (models.CARD, models.CPU))
    for name, ours, cpus, exact in zip(("log-probs", "gradient"), here, there, expected, strict=True):
        distance, allowed = models.apart(ours, exact), models.apart(cpus, exact)
        figure(f"{name} {distance:.1e} from float32, the CPU's bfloat16 {allowed:.1e}")
        assert distance < 2 * allowed
