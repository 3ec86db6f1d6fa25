"""The losses of Proxy-KD as pure functions. Equation numbers are those of arXiv 2401.07013.

Shapes: N completion tokens, B sequences, K top-K. Every function returns unreduced values or plain sums; the
caller divides by its term's unit over the *global* batch (docs/design.md, Units), so that micro-batches, workers and
accumulation do not change a gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from proxykd.losses.top_k import TopK


def sequence_sums(values_N: Tensor, lengths_B: Tensor) -> Tensor:
    """Sums per-token values over B sequences that lie one after the other: [B], float64. An empty one sums to 0.

    In one order, whatever the device: the margins of a policy that equals its reference are 0, however long its
    completions. A float32 sum of 1,000 nats is off by as much as the step-0 gate allows.
    """
    return torch.segment_reduce(values_N.double(), "sum", lengths=lengths_B, unsafe=True)  # a check would wait for them


def dpo(
    chosen_logps_B: Tensor,
    rejected_logps_B: Tensor,
    reference_chosen_logps_B: Tensor,
    reference_rejected_logps_B: Tensor,
    beta: float,
) -> tuple[Tensor, Tensor]:
    """Equation (4) with the minus sign: -log sigmoid(beta * margin), and the margin, each [B].

    margin = (log p_i(y) - log p_{i-1}(y)) - (log p_i(y^) - log p_{i-1}(y^)), on sequence sums, in nats.
    """
    margin_B = (chosen_logps_B - reference_chosen_logps_B) - (rejected_logps_B - reference_rejected_logps_B)
    return -logsigmoid(beta * margin_B), margin_B


def kl_tail(proxy: TopK, student: TopK) -> Tensor:
    """Equation (10) on top-K with a tail bucket: sum_K p log(p/q) + (1-P) log((1-P)/(1-Q)), [N], never negative."""
    return _kl_terms(proxy.logps_NK, student.logps_NK).sum(-1) + _kl_terms(proxy.tail_logmass_N, student.tail_logmass_N)


def kl_truncated(proxy: TopK, student: TopK) -> Tensor:
    """sum_K p log(p/q) without the tail: for comparison only. It can be negative."""
    return _kl_terms(proxy.logps_NK, student.logps_NK).sum(-1)


def kl_proxy_renormalised(proxy: TopK, student: TopK) -> Tensor:
    """The proxy scaled to sum to 1 over its K tokens, the student not: for comparison only. It starves the tail."""
    return _kl_terms(proxy.logps_NK.log_softmax(-1), student.logps_NK).sum(-1)


def kl_both_renormalised(proxy: TopK, student: TopK) -> Tensor:
    """Both scaled over K: for comparison only. The student's tail runs free."""
    return _kl_terms(proxy.logps_NK.log_softmax(-1), student.logps_NK.log_softmax(-1)).sum(-1)


TOP_K_DIVERGENCES = {
    "tail": kl_tail,
    "truncated": kl_truncated,
    "proxy_renormalised": kl_proxy_renormalised,
    "both_renormalised": kl_both_renormalised,
}


def _kl_terms(logp: Tensor, logq: Tensor) -> Tensor:
    """p * (log p - log q) elementwise, in float32 at least; 0 where p is 0, with gradient 0 there."""
    exact = torch.promote_types(logq.dtype, torch.float32)
    logp, logq = logp.to(exact), logq.to(exact)
    present = logp > -torch.inf
    safe_logp = torch.where(present, logp, 0.0)
    safe_logq = torch.where(present, logq, 0.0)
    return torch.where(present, safe_logp.exp() * (safe_logp - safe_logq), 0.0)
