"""The language-model head in chunks: log-probs of completion tokens without a [tokens, vocabulary] float32 tensor.

Forward keeps the hidden states and each row's normalisers. Backward recomputes a chunk's logits, turns them in place
into their gradient and multiplies it away: one float32 chunk is all that ever lives beside the result.

Shapes: N completion tokens, n of them in a chunk, V vocabulary, H hidden, K given ids.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from proxykd.losses.head_chunks import chunk_tokens

WEIGHT_BYTES = 16 * 2**20
"""Of a bfloat16 head, what is held in float32 at a time on a CPU, whose matrix products know one dtype."""


@dataclass(frozen=True)
class Head:
    """Hidden states to logits: weight [V, H], bias [V] or None, and the soft-cap of Gemma-like models."""

    linear: nn.Linear
    vocabulary: int
    """Logits beyond it stand for no token and are cut (vocabularies padded past the tokenizer)."""
    softcap: float | None = None

    def chunks(self, tokens: int) -> Iterator[slice]:
        size = chunk_tokens(self.vocabulary, self.linear.weight.device.type)
        return (slice(start, min(start + size, tokens)) for start in range(0, tokens, size))

    def logits(self, hidden_nH: Tensor) -> Tensor:
        """Float32 logits of one chunk: [n, V], the caller's to overwrite where no gradient is wanted.

        Exact products of what the model holds, in float32 at least whatever its dtype: bfloat16 would round a logit of
        20 to a multiple of 1/8.
        """
        logits_nV: Tensor = _Float32Product.apply(hidden_nH, self.linear.weight[: self.vocabulary])
        if self.linear.bias is not None:
            logits_nV = logits_nV + self.linear.bias[: self.vocabulary]
        return logits_nV if self.softcap is None else (logits_nV / self.softcap).tanh() * self.softcap

    def token_logps(self, hidden_NH: Tensor, labels_N: Tensor, ids_NK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Differentiable log-probs [N] of the labels, [N, K] of the ids and [N] of all other tokens together."""
        columns: tuple[Tensor, Tensor, Tensor] = _TokenLogps.apply(
            hidden_NH, self.linear.weight, self.linear.bias, labels_N, ids_NK, self
        )
        return columns


@dataclass(frozen=True)
class Normalised:
    """What is left of n rows of logits once they are read."""

    label_logps_n: Tensor
    top_logps_nK: Tensor
    tail_logmass_n: Tensor
    """log(1 - Q), from the logsumexp of the complement: finite, with a finite gradient, as Q goes to 1, where
    log(1 - exp(log Q)) is neither. -inf if nothing is outside the K ids."""
    logsumexp_n: Tensor
    rest_n: Tensor
    """The logsumexp of the complement."""


def normalise_(logits_nV: Tensor, labels_n: Tensor, ids_nK: Tensor) -> Normalised:
    """Log-probs of labels, K distinct ids, and the rest. Overwrites the logits."""
    label = logits_nV.gather(1, labels_n[:, None])[:, 0]
    top = logits_nV.gather(1, ids_nK)
    rest = _logsumexp_(logits_nV.scatter_(1, ids_nK, -torch.inf))
    whole = torch.cat([top, rest[:, None]], 1).logsumexp(1)
    return Normalised(label - whole, top - whole[:, None], rest - whole, whole, rest)


def _logsumexp_(values_nV: Tensor) -> Tensor:
    """Over the last dimension, in place of its input; -inf where every value is."""
    largest = values_nV.amax(1, keepdim=True)
    finite = largest.nan_to_num(neginf=0.0)
    return values_nV.sub_(finite).exp_().sum(1).log() + finite[:, 0]


def _exact(weight: Tensor) -> torch.dtype:
    """What logits and log-probs of a head are in."""
    return torch.promote_types(weight.dtype, torch.float32)


class _Float32Product(torch.autograd.Function):
    """hidden [n, H] times weight [V, H], in float32, or float64 where that is the weight's: [n, V]. Gradients are
    multiplied in the weight's own dtype."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        if weight.dtype == _exact(weight):
            return hidden @ weight.T
        if weight.is_cuda:  # tensor cores add up in float32: what is written is not rounded
            return torch.mm(hidden, weight.T, out_dtype=torch.float32)
        product = hidden.new_empty(len(hidden), len(weight), dtype=torch.float32)
        rows = max(1, WEIGHT_BYTES // (4 * weight.shape[1]))
        for block, part in zip(product.split(rows, dim=1), weight.split(rows), strict=True):
            torch.mm(hidden.float(), part.float().T, out=block)
        return product

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        hidden, weight = ctx.saved_tensors
        gradient = gradient.to(weight.dtype)
        hidden_grad = gradient @ weight if ctx.needs_input_grad[0] else None
        return hidden_grad, gradient.T @ hidden if ctx.needs_input_grad[1] else None


class _TokenLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, ids: Tensor, head: Head
    ) -> tuple[Tensor, Tensor, Tensor]:
        tokens = hidden.shape[0]
        token_logps, tail, whole, rest = (hidden.new_empty(tokens, dtype=_exact(weight)) for _ in range(4))
        top_logps = hidden.new_empty(ids.shape, dtype=_exact(weight))
        for part in head.chunks(tokens):
            found = normalise_(head.logits(hidden[part]), labels[part], ids[part])
            token_logps[part], top_logps[part], tail[part] = (
                found.label_logps_n,
                found.top_logps_nK,
                found.tail_logmass_n,
            )
            whole[part], rest[part] = found.logsumexp_n, found.rest_n
        ctx.head = head
        ctx.save_for_backward(hidden, weight, bias, labels, ids, top_logps, whole, rest)
        return token_logps, top_logps, tail

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, label_grad: Tensor, top_grad: Tensor, tail_grad: Tensor) -> tuple[Tensor | None, ...]:
        """With p the softmax and r the softmax of the complement, a row's gradient in its logits is

            g_label onehot(label) + sum_k g_k onehot(id_k) + g_tail r - G p,     G = g_label + sum_k g_k + g_tail

        and p outside the K ids is r times the tail's mass.
        """
        hidden, weight, bias, labels, ids, top_logps, whole, rest = ctx.saved_tensors
        head: Head = ctx.head
        wanted = ctx.needs_input_grad
        total = label_grad + top_grad.sum(1) + tail_grad
        hidden_grad = torch.empty_like(hidden) if wanted[0] else None
        exact = _exact(weight)
        weight_grad = torch.zeros_like(weight, dtype=exact) if wanted[1] else None
        bias_grad = torch.zeros_like(bias, dtype=exact) if wanted[2] else None
        outside = tail_grad - total * (rest - whole).exp()
        inside = top_grad - total[:, None] * top_logps.exp()
        finite_rest = rest.nan_to_num(neginf=0.0)
        for part in head.chunks(hidden.shape[0]):
            logits = head.logits(hidden[part])
            slope = None if head.softcap is None else 1 - (logits / head.softcap).square_()
            gradient = logits.sub_(finite_rest[part, None]).exp_().mul_(outside[part, None])
            gradient.scatter_(1, ids[part], inside[part])
            gradient.scatter_add_(1, labels[part, None], label_grad[part, None])
            if slope is not None:
                gradient.mul_(slope)
            if bias_grad is not None:
                bias_grad[: head.vocabulary] += gradient.sum(0)
            gradient = gradient.to(weight.dtype)
            if hidden_grad is not None:
                hidden_grad[part] = gradient @ weight[: head.vocabulary]
            if weight_grad is not None:
                weight_grad[: head.vocabulary].addmm_(gradient.T.to(exact), hidden[part].to(exact))
        grads = (None if g is None else g.to(x.dtype) for g, x in ((weight_grad, weight), (bias_grad, bias)))
        return hidden_grad, *grads, None, None, None
