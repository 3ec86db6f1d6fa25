"""What a student of another tokenizer learns from the proxy's top-K labels, as pure functions.

Where one token of the proxy stands for the same bytes as one of the student's, the labels go to the student's
vocabulary by their images, and the loss is equation (10) with its tail, as everywhere (`mapped`, `folded`). Where a
**chunk** of several tokens does, it is the binary divergence of both sides' probabilities of the chunk (approximate
likelihood matching, Minixhofer et al., arXiv 2503.20083):

    P = prod p_t,  Q = prod q_t over the chunk's tokens,    KL_b = P log(P / Q) + (1 - P) log((1 - P) / (1 - Q))

The chunk against everything else is one partition of what could follow, so that this is at most the KL of the whole
distributions over it (data processing inequality). 1 - Q comes from the complements of the tokens, not from Q:

    1 - Q = sum_t q_1 ... q_(t-1) (1 - q_t)

finite in its logarithm, with a finite gradient, as Q goes to 1.

Shapes: N student tokens, T proxy tokens, S chunks, K top-K, L tokens of the longest chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from proxykd.losses.coarse import coarse_divergence
from proxykd.losses.divergences import Name
from proxykd.losses.sequence_losses import kl_tail
from proxykd.losses.top_k import TopK

NONE = -1
"""In place of an id or index: there is none."""


@dataclass(frozen=True)
class AlignedTopK:
    """What the student is to learn at its N tokens."""

    top: TopK
    """At tokens that are one to one, the labels in the student's ids; elsewhere ids alone count."""
    kept_NK: Tensor
    """Which ids say something: the others fill up, and their mass belongs to the tail."""
    alone_N: Tensor
    """Which tokens are one to one with a token of the proxy."""
    firsts_S: Tensor
    lengths_S: Tensor
    """Of each chunk, its first of the N tokens, and how many it has."""
    logps_S: Tensor
    rests_S: Tensor
    """log P and log(1 - P) of each chunk by the proxy."""


def mapped(labels: TopK, images_NK: Tensor) -> tuple[TopK, Tensor]:
    """Labels in another vocabulary, and which of their K ids are kept.

    `images_NK` are the other vocabulary's ids, NONE where there is none. Labels of one image add up in the first of
    their slots; what has no image joins the tail. Slots that this leaves free get other ids, distinct ones from 0 on,
    with a log-prob of -inf (the vocabulary has 2K tokens at least).
    """
    k = images_NK.shape[1]
    known_NK = images_NK != NONE
    equal_NKK = (images_NK[:, :, None] == images_NK[:, None, :]) & known_NK[:, :, None]
    kept_NK = known_NK & ~equal_NKK.tril(-1).any(-1)
    sums_NK = labels.logps_NK[:, None, :].masked_fill(~equal_NKK, -torch.inf).logsumexp(-1)
    lost_NK = labels.logps_NK.masked_fill(known_NK, -torch.inf)
    tail_N = torch.cat([labels.tail_logmass_N[:, None], lost_NK], 1).logsumexp(1)
    candidates_C = torch.arange(2 * k, device=images_NK.device)
    taken_NC = (candidates_C[None, :, None] == images_NK[:, None, :]).any(-1)
    free_NK = taken_NC.int().argsort(dim=1, stable=True)[:, :k]
    ids_NK = torch.where(kept_NK, images_NK, free_NK)
    return TopK(ids_NK, sums_NK.masked_fill(~kept_NK, -torch.inf), tail_N), kept_NK


def aligned_labels(
    labels: TopK,
    ids_T: Tensor,
    token_logps_T: Tensor,
    student_ids_N: Tensor,
    proxy_at_N: Tensor,
    images_NK: Tensor,
    chunks_S4: Tensor,
) -> AlignedTopK:
    """A reply's labels for a student of another tokenizer, from the proxy's top-K and its own tokens' log-probs.

    `proxy_at_N`, `images_NK` and `chunks_S4` are those of `VocabularyMap` (text/vocabulary_map.py).
    """
    alone_N = proxy_at_N != NONE
    top, kept_NK = mapped(labels.at(proxy_at_N.clamp(min=0)), _with_own(images_NK, student_ids_N, alone_N))
    firsts_S, lengths_S, student_firsts_S, student_lengths_S = chunks_S4.T
    logps_S, rests_S = chunk_logps(*token_and_rest(labels, ids_T, token_logps_T), firsts_S, lengths_S)
    return AlignedTopK(top, kept_NK, alone_N, student_firsts_S, student_lengths_S, logps_S, rests_S)


def folded(student: TopK, kept_NK: Tensor) -> TopK:
    """The student's distribution with the mass of ids that are not kept in its tail. Where all are, it is as it was."""
    others_NK = student.logps_NK.masked_fill(kept_NK, -torch.inf)
    tail_N = torch.cat([student.tail_logmass_N[:, None], others_NK], 1).logsumexp(1)
    return TopK(student.ids_NK, student.logps_NK.masked_fill(~kept_NK, -torch.inf), tail_N)


def token_and_rest(labels: TopK, ids_T: Tensor, token_logps_T: Tensor) -> tuple[Tensor, Tensor]:
    """log p and log(1 - p) of given tokens, each [T], float64.

    From their top-K where it holds them: the others' mass, added up. Elsewhere p, known by itself, is small.
    """
    logps_TK, tail_T = labels.logps_NK.double(), labels.tail_logmass_N.double()
    here_TK = labels.ids_NK == ids_T[:, None]
    inside_T = here_TK.any(1)
    others_TK = torch.cat([logps_TK.masked_fill(here_TK, -torch.inf), tail_T[:, None]], 1)
    known_T = logps_TK.masked_fill(~here_TK, -torch.inf).amax(1)
    logp_T = torch.where(inside_T, known_T, token_logps_T.double())
    return logp_T, torch.where(inside_T, others_TK.logsumexp(1), _log_complement(logp_T))


def chunk_logps(logps_N: Tensor, rests_N: Tensor, firsts_S: Tensor, lengths_S: Tensor) -> tuple[Tensor, Tensor]:
    """log Q and log(1 - Q) of chunks, each [S], float64, from their tokens' log q and log(1 - q)."""
    longest = int(lengths_S.max()) if len(lengths_S) else 0
    steps_L = torch.arange(longest, device=logps_N.device)
    inside_SL = steps_L < lengths_S[:, None]
    at_SL = torch.where(inside_SL, firsts_S[:, None] + steps_L, 0)
    logps_SL = torch.where(inside_SL, logps_N.double()[at_SL], 0.0)
    rests_SL = torch.where(inside_SL, rests_N.double()[at_SL], -torch.inf)
    before_SL = logps_SL.cumsum(1) - logps_SL
    return logps_SL.sum(1), (before_SL + rests_SL).logsumexp(1)


def binary_kl(logp_S: Tensor, rest_p_S: Tensor, logq_S: Tensor, rest_q_S: Tensor, temperature: float = 1.0) -> Tensor:
    """T * KL_b(P^(1/T), Q^(1/T)), [S], in nats, never negative; each side by its log P and log(1 - P).

    At temperature T = 1 it is the KL of chunk and rest. Long chunks have small P and Q, of which it then says little;
    as T grows (its authors' 100) it goes to a log(a / b) - a + b, with a = -log P and b = -log Q, which they all
    reach. The factor T keeps its gradient's size.
    """
    logp_S, rest_p_S = _tempered(logp_S, rest_p_S, temperature)
    logq_S, rest_q_S = _tempered(logq_S, rest_q_S, temperature)
    return temperature * (_terms(logp_S, logq_S) + _terms(rest_p_S, rest_q_S))


def aligned_kl(target: AlignedTopK, token_logps_N: Tensor, student: TopK, temperature: float = 1.0) -> Tensor:
    """[N], in nats: at tokens that are one to one the KL with tail, at a chunk's last token its binary divergence, 0
    elsewhere.

    `token_logps_N` are the student's own tokens', `student` its log-probs at `target.top.ids_NK`; a chunk's tokens
    are the one id that is kept there.
    """
    return _by_place(target, token_logps_N, student, kl_tail, partial(binary_kl, temperature=temperature))


def aligned_coarse(name: Name, target: AlignedTopK, token_logps_N: Tensor, student: TopK) -> Tensor:
    """[N], in nats: a divergence in place of that KL, over the same outcomes, a chunk and all else being two."""

    def of_chunks(logp_S: Tensor, rest_p_S: Tensor, logq_S: Tensor, rest_q_S: Tensor) -> Tensor:
        return coarse_divergence(name, _two_outcomes(logp_S, rest_p_S), _two_outcomes(logq_S, rest_q_S))

    return _by_place(target, token_logps_N, student, partial(coarse_divergence, name), of_chunks)


def sorted_distance(proxy: TopK, student: TopK) -> Tensor:
    """[N] the distance of two distributions whatever their tokens are, each K log-probs in falling order with a tail:

        sum_k |p_(k) - q_(k)| + |P_tail - Q_tail|

    Universal logit distillation (Boizard et al., arXiv 2402.12030), where K is the larger vocabulary; with less, what
    a top-K knows of it, and no more than that.
    """
    distances_NK = (proxy.logps_NK.exp() - student.logps_NK.exp()).abs()
    return distances_NK.sum(-1) + (proxy.tail_logmass_N.exp() - student.tail_logmass_N.exp()).abs()


def _by_place(
    target: AlignedTopK,
    token_logps_N: Tensor,
    student: TopK,
    of_tokens: Callable[[TopK, TopK], Tensor],
    of_chunks: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    student = folded(student, target.kept_NK)
    alone = target.alone_N
    one_to_one = of_tokens(target.top.at(alone), student.at(alone))
    values_N = torch.zeros_like(token_logps_N, dtype=one_to_one.dtype)
    values_N[alone] = one_to_one
    logq_S, rest_q_S = chunk_logps(token_logps_N, student.tail_logmass_N, target.firsts_S, target.lengths_S)
    chunks_S = of_chunks(target.logps_S, target.rests_S, logq_S, rest_q_S)
    return values_N.index_put((target.firsts_S + target.lengths_S - 1,), chunks_S.to(values_N.dtype), accumulate=True)


def _two_outcomes(logp_S: Tensor, rest_S: Tensor) -> TopK:
    return TopK(torch.zeros_like(logp_S, dtype=torch.int64)[:, None], logp_S[:, None], rest_S)


def _with_own(images_NK: Tensor, student_ids_N: Tensor, alone_N: Tensor) -> Tensor:
    """Images, and in place of them the student's own token alone where a token is not one to one."""
    own_NK = torch.full_like(images_NK, NONE)
    own_NK[:, 0] = student_ids_N
    return torch.where(alone_N[:, None], images_NK, own_NK)


def _tempered(logp: Tensor, rest: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """log P^(1/T) and log(1 - P^(1/T)); from 1 - P, where it is the smaller, so that neither is lost in rounding."""
    if temperature == 1:
        return logp, rest
    tiny = rest < math.log(TINY)
    small = (rest < math.log(0.5)) & ~tiny
    exact = torch.log1p(-torch.where(small, rest, -1.0).exp())
    logp_T = torch.where(small, exact, torch.where(tiny, -1.0, logp)) / temperature
    rest_T = torch.where(tiny, rest - math.log(temperature), _log_complement(logp_T))
    return logp / temperature, rest_T


TINY = 1e-12
"""Below it, 1 - (1 - x)^(1/T) is x / T in float64."""


def _log_complement(logp: Tensor) -> Tensor:
    """log(1 - exp(logp)) for logp below 0; -inf at 0."""
    near = logp > math.log(0.5)
    close, far = torch.where(near, logp, -1.0), torch.where(near, -1.0, logp)
    return torch.where(near, (-torch.expm1(close)).log(), torch.log1p(-far.exp()))


def _terms(logp: Tensor, logq: Tensor) -> Tensor:
    """p * (log p - log q); 0 where p is 0, with gradient 0 there."""
    present = logp > -torch.inf
    safe_logp, safe_logq = (torch.where(present, one, 0.0) for one in (logp, logq))
    return torch.where(present, safe_logp.exp() * (safe_logp - safe_logq), 0.0)
