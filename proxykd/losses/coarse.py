"""Divergences between a proxy of which K ids are known at each token, and a student: the loss of an on-policy phase
that the proxy's engine judges.

Both are read over these ids and the rest of the vocabulary as one outcome more. Taking outcomes together never adds to
a divergence (the data processing inequality), so that

    D(p', q') <= D(p, q),    p'_k = p(id_k), p'_rest = 1 - sum_k p(id_k), q' likewise

for KL either way and Jensen-Shannon, with equality where p / q is the same for all of the rest.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from proxykd.losses.divergences import DENSE_DIVERGENCES, Name
from proxykd.losses.top_k import TopK

LEAST = 1e-9
"""Of the rest's mass: below it float32 log-probs of the others do not tell it."""


def with_token(top: TopK, labels_N: Tensor, token_logps_N: Tensor) -> TopK:
    """The K outcomes that are told apart at each token: the one that stands there, `labels_N` with `token_logps_N`, and
    the likeliest of `top`, sorted, of which it takes the last one's place where it is none of them."""
    among_N = (top.ids_NK == labels_N[:, None]).any(1)
    ids_NK, logps_NK = top.ids_NK.clone(), top.logps_NK.double()
    ids_NK[:, -1] = torch.where(among_N, ids_NK[:, -1], labels_N)
    logps_NK[:, -1] = torch.where(among_N, logps_NK[:, -1], token_logps_N.double())
    rest_N = (1 - logps_NK.exp().sum(1)).clamp(min=LEAST)
    return TopK(ids_NK, logps_NK.float(), rest_N.log().float())


def coarse_divergence(name: Name, proxy: TopK, student: TopK) -> Tensor:
    """D(p', q'), [N], in nats, never negative; differentiable in the student's log-probs, of the same ids. Slots of the
    proxy's that have a log-prob of -inf name no outcome."""
    empty_NK, least = proxy.logps_NK == -torch.inf, math.log(LEAST)
    p, q = (
        torch.cat([one.logps_NK.masked_fill(empty_NK, least), one.tail_logmass_N.clamp(min=least)[:, None]], 1)
        for one in (proxy, student)
    )
    return DENSE_DIVERGENCES[name](p, q)
