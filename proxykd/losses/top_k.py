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
