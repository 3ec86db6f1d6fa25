"""A sparse distribution: the K most likely tokens in full-softmax log-probs, and the log-mass of all the others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TopK:
    """A sparse distribution at N tokens: K log-probs (full softmax) with their ids, and the log-mass of the rest."""

    ids_NK: Tensor
    logps_NK: Tensor
    tail_logmass_N: Tensor

    def to(self, device: torch.device) -> TopK:
        return TopK(self.ids_NK.to(device), self.logps_NK.to(device), self.tail_logmass_N.to(device))


def tail_logmass(logits_NV: Tensor, logsumexp_N1: Tensor, ids_NK: Tensor) -> Tensor:
    """log(1 - Q): the log-mass outside K distinct ids, from the logsumexp of the complement.

    Finite, with a finite gradient, as Q goes to 1, where log(1 - exp(logQ)) is neither. -inf if nothing is outside.
    """
    if ids_NK.shape[1] >= logits_NV.shape[1]:
        return logits_NV.new_full((logits_NV.shape[0],), -torch.inf)
    complement = logits_NV.scatter(1, ids_NK, -torch.inf)
    return complement.logsumexp(-1) - logsumexp_N1[:, 0]
