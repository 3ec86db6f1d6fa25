"""Labels that are drawn: at each token, K draws from a distribution in place of its K most likely tokens.

Random sampling KD (Anshumann et al., arXiv 2503.16870) samples by importance; here the proposal is the distribution p
itself, at temperature 1, so that each of the K draws, with replacement, weighs 1/K, and equal ones add up:

    p^_k = (how often k was drawn) / K,    E[p^_k] = p_k

The gradient of the cross-entropy -sum_k p^_k log q_k in the student's logits is q - p^, whose expectation q - p is
that of KL(p || q) over the whole vocabulary: unbiased, where a top-K without its tail is not and one with it says
nothing of which tokens the tail is made of. KL(p^ || q) is that cross-entropy less the entropy of p^, which no student
changes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from proxykd.losses.top_k import TopK


def draw_ids(logits_nV: Tensor, uniforms_nK: Tensor) -> Tensor:
    """[n, K] ids drawn from softmax(logits), with replacement: where each uniform of [0, 1) falls in the cumulative
    distribution, in float64."""
    cumulative_nV = logits_nV.double().softmax(-1).cumsum(-1)
    found_nK = torch.searchsorted(cumulative_nV, uniforms_nK * cumulative_nV[:, -1:], right=True)
    return found_nK.clamp(max=logits_nV.shape[1] - 1)  # a product may round up to the whole


def counted(ids_nK: Tensor, vocabulary: int) -> TopK:
    """The shares p^ of K draws: K distinct ids, the most drawn first, and no tail.

    Where draws are equal, ids that were not drawn fill up, with a log-prob of -inf: they say nothing. The vocabulary
    has K tokens at least.
    """
    n, k = ids_nK.shape
    others_nC = torch.arange(min(2 * k, vocabulary), device=ids_nK.device).expand(n, -1)
    candidates_nC = torch.cat([ids_nK, others_nC], 1)
    times_nC = (candidates_nC[:, :, None] == ids_nK[:, None, :]).sum(-1)
    repeats_nC = (candidates_nC[:, :, None] == candidates_nC[:, None, :]).tril(-1).any(-1)
    order_nK = times_nC.masked_fill(repeats_nC, -1).sort(dim=1, descending=True, stable=True).indices[:, :k]
    shares_nK = times_nC.gather(1, order_nK).float() / k
    return TopK(candidates_nC.gather(1, order_nK), shares_nK.log(), shares_nK.new_full((n,), -torch.inf))
