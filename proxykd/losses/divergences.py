"""Dense divergences between a white-box teacher p and a student q, over the full vocabulary: the baselines' losses.
(Those of Proxy-KD, on a top-K with tail, are in sequence_losses.py.)

Each takes log-probs [n, V] and gives [n], in nats (total variation: a share), never negative. `Divergence` adds the
temperature.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from proxykd.losses.head import Head

Name = Literal["forward_kl", "reverse_kl", "jsd", "tvd"]


def forward_kl(teacher_logps_nV: Tensor, student_logps_nV: Tensor) -> Tensor:
    """KL(p || q) = sum p log(p / q): Hinton et al., arXiv 1503.02531."""
    return (teacher_logps_nV.exp() * (teacher_logps_nV - student_logps_nV)).sum(-1)


def reverse_kl(teacher_logps_nV: Tensor, student_logps_nV: Tensor) -> Tensor:
    """KL(q || p) = sum q log(q / p): MiniLLM, arXiv 2306.08543; token by token as in GKD, arXiv 2306.13649."""
    return forward_kl(student_logps_nV, teacher_logps_nV)


def jsd(teacher_logps_nV: Tensor, student_logps_nV: Tensor) -> Tensor:
    """(KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2: GKD's generalised form at beta = 1/2."""
    mixture = torch.logaddexp(teacher_logps_nV, student_logps_nV) - math.log(2)
    return (forward_kl(teacher_logps_nV, mixture) + forward_kl(student_logps_nV, mixture)) / 2


def tvd(teacher_logps_nV: Tensor, student_logps_nV: Tensor) -> Tensor:
    """sum |p - q| / 2, the total variation distance: f-distill, arXiv 2307.15190."""
    return (teacher_logps_nV.exp() - student_logps_nV.exp()).abs().sum(-1) / 2


DENSE_DIVERGENCES: dict[Name, Callable[[Tensor, Tensor], Tensor]] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jsd": jsd,
    "tvd": tvd,
}


ORDERS: dict[Name, int] = {"forward_kl": 2, "reverse_kl": 2, "jsd": 2, "tvd": 1}
"""The power of a small difference between p and q that each grows by, and so of 1 / T that its gradient falls by."""


@dataclass(frozen=True)
class Divergence:
    """T^order * D(softmax(teacher / T), softmax(student / T)): so multiplied, the gradient keeps its size.

    As T grows, p - q goes to (t - s) / (V T), t and s the centred logits. KL and Jensen-Shannon are quadratic in it
    (their gradients in s go to (s - t) / (V T^2), the latter's to a quarter of that): T^2, as in Hinton et al., section
    2. Total variation is linear in it (its gradient goes to sign(s - t), centred, / (2 V T)): T.
    """

    name: Name
    temperature: float = 1.0

    def __call__(self, teacher_logits_nV: Tensor, student_logits_nV: Tensor) -> Tensor:
        """[n], differentiable in the student's float32 logits."""
        teacher, student = (
            (logits / self.temperature).log_softmax(-1) for logits in (teacher_logits_nV, student_logits_nV)
        )
        return self.temperature ** ORDERS[self.name] * DENSE_DIVERGENCES[self.name](teacher, student)

    def by_token(self, teacher: Head, teacher_hidden_NH: Tensor, student: Head, student_hidden_NH: Tensor) -> Tensor:
        """[N] from hidden states, chunk by chunk: backward computes a chunk's logits again, so that the float32 logits
        of one chunk are all that ever lives."""

        def of_chunk(teacher_hidden_nH: Tensor, student_hidden_nH: Tensor) -> Tensor:
            with torch.no_grad():
                teacher_logits_nV = teacher.logits(teacher_hidden_nH)
            return self(teacher_logits_nV, student.logits(student_hidden_nH))

        parts = [
            checkpoint(of_chunk, teacher_hidden_NH[part], student_hidden_NH[part], use_reentrant=False)
            for part in student.chunks(len(student_hidden_NH))
        ]
        return torch.cat(parts) if parts else student_hidden_NH.sum(-1)
