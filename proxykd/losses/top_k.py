"""A sparse distribution: K tokens in full-softmax log-probs, and the log-mass of all the others."""

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

    def at(self, some_N: Tensor) -> TopK:
        """At some of the tokens, by a mask or their places."""
        return TopK(self.ids_NK[some_N], self.logps_NK[some_N], self.tail_logmass_N[some_N])

    def to(self, device: torch.device) -> TopK:
        return TopK(*(moved(values, device) for values in (self.ids_NK, self.logps_NK, self.tail_logmass_N)))


def moved(values: Tensor, device: torch.device) -> Tensor:
    """The same on the device, without waiting for what it is at: a copy from pageable memory would."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def shifted(start: TopK, aligned: TopK, base: TopK) -> TopK:
    """What `start` becomes by the shift from `base` to `aligned`: proportional to start * aligned / base over the K ids
    of all three and the tail as one outcome more, normalised over these K + 1.

        log t_k = log q0_k + log p_k - log b_k - log sum_j exp(log q0_j + log p_j - log b_j),   j = 1 ... K + 1

    After Delta-KD (Cao et al., arXiv 2509.14526), where a student learns its own start moved by what fine-tuning
    changed in its teacher: token by token, over the whole vocabulary of an open teacher before and after. Here the
    proxy is what changed, and all tokens outside its top K move together, by the ratio of their masses. In float32; an
    outcome without mass in `aligned` has none in the result.
    """
    q0, p, b = (torch.cat([one.logps_NK, one.tail_logmass_N[:, None]], 1).float() for one in (start, aligned, base))
    logps = torch.where(p > -torch.inf, q0 + p - b, -torch.inf).log_softmax(1)
    return TopK(aligned.ids_NK, logps[:, :-1], logps[:, -1])
