"""Packed sequences and a prompt that a pair shares: on the GPU the values and gradients of padded ones."""

from __future__ import annotations

import pytest
import torch

from proxykd.models import packed_attention
from proxykd.models.batching import collate, collate_behind
from proxykd.models.loading import read_model
from proxykd.models.scorer import CompletionScorer
from tests.attention_by_loops import one_stretch_after_the_other
from tests.families import FAMILIES, make
from tests.gpu import models
from tests.unit.test_packing import LENGTHS, pairs

FLOAT32_APART = 2e-5
"""As in test_scores.py."""
BFLOAT16_APART = 1e-2
"""Of one attention, with operands and result rounded to 8 bits (4e-3 at most, each)."""


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    return make(request.param, tmp_path_factory.mktemp(request.param))


def logps_and_gradient(folder, dtype: torch.dtype, packed: bool, device: torch.device):
    """Packed, the prompt once; else padded, the prompt once for each completion."""
    scorer = CompletionScorer(read_model(folder, dtype).eval(), 300).to(device)
    assert scorer.packs
    scorer.packs = packed
    rows = pairs()
    if packed:
        batch = collate_behind([prompt for prompt, *_ in rows], [sides for _, *sides in rows])
    else:
        batch = collate(
            [prompt for prompt, *_ in rows for _ in range(2)], [side for _, *sides in rows for side in sides]
        )
    logps_N = scorer(batch.to(device)).token_logps_N
    weights = torch.rand(len(logps_N), generator=torch.Generator().manual_seed(1)).to(device)
    (logps_N * weights).mean().backward()
    return logps_N, models.gradient(scorer)


def test_float32_packed_is_padded_and_the_cpus(folder):
    found = logps_and_gradient(folder, torch.float32, True, models.CARD)
    for packed, device in ((False, models.CARD), (True, models.CPU)):
        for one, other in zip(found, logps_and_gradient(folder, torch.float32, packed, device), strict=True):
            assert models.apart(one, other) < FLOAT32_APART


def test_bfloat16_packed_is_as_near_to_float32_as_padded(folder, figure):
    exact = logps_and_gradient(folder, torch.float32, False, models.CARD)
    packed, padded = (logps_and_gradient(folder, torch.bfloat16, one, models.CARD) for one in (True, False))
    for name, ours, theirs, truth in zip(("log-probs", "gradient"), packed, padded, exact, strict=True):
        distance, allowed = models.apart(ours, truth), models.apart(theirs, truth)
        figure(f"{name} packed {distance:.1e} from float32, padded {allowed:.1e}")
        assert distance < 2 * allowed


@pytest.mark.parametrize("shared", [True, False], ids=["prompts shared", "each alone"])
@pytest.mark.parametrize("window", [None, 16])
def test_flash_kernels_see_what_loops_see(window, shared, figure):
    """Sequences of very unlike length, fewer keys than queries, a window: forward and backward."""
    prompts, sides = [[0] * prompt for prompt, *_ in LENGTHS], [[[0] * size for size in sizes] for _, *sizes in LENGTHS]
    batch = collate_behind(prompts, sides) if shared else collate(prompts, [one for one, _ in sides])
    draw = torch.Generator().manual_seed(4)
    tokens = len(batch.input_ids_T)
    inputs = [torch.randn(1, heads, tokens, 64, generator=draw).bfloat16() for heads in (8, 2, 2)]
    slope = torch.randn(1, tokens, 8, 64, generator=draw)
    found = {}
    for dtype in (torch.bfloat16, torch.float32):
        leaves = [one.to(models.CARD, dtype).requires_grad_() for one in inputs]
        layout = batch.to(models.CARD).layout
        assert packed_attention.takes_flash(leaves[0], leaves[2]) == (dtype == torch.bfloat16)
        with pytest.MonkeyPatch.context() as patch:
            if dtype == torch.float32:
                patch.setattr(packed_attention, "takes_flash", lambda *_: True)
                patch.setattr(packed_attention, "varlen_attn", one_stretch_after_the_other)
            attend = packed_attention.PACKED["packed_sdpa"][0]
            output, _ = attend(None, *leaves, None, layout=layout, scaling=0.125, sliding_window=window)
        (output.float() * slope.to(models.CARD)).sum().backward()
        found[dtype] = [output, *(leaf.grad for leaf in leaves)]
    distances = [models.apart(*both) for both in zip(*found.values(), strict=True)]
    figure("output {:.1e}, gradients {:.1e} {:.1e} {:.1e} from the loops".format(*distances))
    assert max(distances) < BFLOAT16_APART
