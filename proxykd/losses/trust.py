"""Equation (9): how far a record is trusted, w = sigmoid((score - mu) / gamma). Its one home, in float64.

A record's score is log p(y given x) by the aligned proxy, in nats: summed over tokens, or their mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

CONSTANT_WEIGHTS = {"none": 1.0, "constant": 0.5}
HISTOGRAM_BINS = 20
ROUNDING = 1e-6
"""Of the scores' size: what spreads less is alike, since log-probs and their sums come in float32."""


@dataclass(frozen=True)
class Trust:
    """mu and gamma, of the aligned adapter over D_s; every other adapter is judged by them too."""

    adapter: str
    mu: float
    gamma: float
    reduction: str
    """`sequence_sum` or `token_mean`."""

    @classmethod
    def of(cls, labels: dict[str, Any]) -> Trust:
        """Returns the trust that a stage's result or a report holds."""
        return cls(labels["adapter"], labels["mu"], labels["gamma"], labels["reduction"])

    @classmethod
    def over(cls, adapter: str, sequence_logps: Sequence[float], tokens: Sequence[int], trust: str) -> Trust:
        """mu and gamma of completions by an adapter's log-probs of them, reduced as `distillation.trust` says."""
        reduction = reduction_of(trust)
        return cls(adapter, *trust_statistics(scores(sequence_logps, tokens, reduction)), reduction)

    @property
    def tells_apart(self) -> bool:
        """Whether some record of D_s is trusted more than another."""
        return not all_alike(self.mu, self.gamma)

    def judge(self, sequence_logp: float, tokens: int) -> tuple[float | None, float]:
        """A completion's z-score and its weight sigmoid(z). Where all records of D_s are alike: None and 0.5."""
        [weight] = self.weights([sequence_logp], [tokens])
        if not self.tells_apart:
            return None, weight
        [score] = scores([sequence_logp], [tokens], self.reduction)
        return (score - self.mu) / self.gamma, weight

    def weights(self, sequence_logps: Sequence[float], tokens: Sequence[int]) -> list[float]:
        """The weights of many completions."""
        return trust_weights(scores(sequence_logps, tokens, self.reduction), self.mu, self.gamma)

    def weight_function(self, trust: str) -> Callable[[float, int], float]:
        """A record's weight from its log p(y given x) in nats and its tokens, by `distillation.trust`."""
        if trust in CONSTANT_WEIGHTS:
            return lambda sequence_logp, tokens: CONSTANT_WEIGHTS[trust]
        return lambda sequence_logp, tokens: self.judge(sequence_logp, tokens)[1]


def weights_among(sequence_logps: Sequence[float], tokens: Sequence[int], trust: str) -> list[float]:
    """The weights of completions with mu and gamma over these very ones, reduced as `distillation.trust` says."""
    judged = scores(sequence_logps, tokens, reduction_of(trust))
    return trust_weights(judged, *trust_statistics(judged))


def weight_histogram(weights: Sequence[float]) -> tuple[list[float], list[int]]:
    """The edges of bars from 0 to 1, and how many of the weights lie in each."""
    counts, edges = np.histogram(weights, bins=HISTOGRAM_BINS, range=(0.0, 1.0))
    return edges.tolist(), counts.tolist()


def histogram_mean(edges: Sequence[float], counts: Sequence[int]) -> float:
    """The mean weight, every record's taken to be the middle of its bar; 0 where there is no record."""
    middles = [(low + high) / 2 for low, high in pairwise(edges)]
    weighted = sum(middle * count for middle, count in zip(middles, counts, strict=True))
    return weighted / max(1, sum(counts))


def reduction_of(trust: str) -> str:
    """How `distillation.trust` reduces log-probs to a score; a constant weight has the paper's statistics beside it."""
    return "token_mean" if trust == "token_mean" else "sequence_sum"


def scores(sequence_logps: Sequence[float], tokens: Sequence[int], reduction: str) -> list[float]:
    """What equation (9) judges each completion by, from its summed log-prob and its number of tokens."""
    if reduction != "token_mean":
        return list(sequence_logps)
    return [logp / max(count, 1) for logp, count in zip(sequence_logps, tokens, strict=True)]


def trust_statistics(scores: Sequence[float]) -> tuple[float, float]:
    """mu and gamma: mean and population deviation over D_s; gamma is 0 where scores differ by rounding alone."""
    values = np.asarray(scores, dtype=np.float64)
    mu, gamma = float(values.mean()), float(values.std())
    return mu, 0.0 if all_alike(mu, gamma) else gamma


def trust_weights(scores: Sequence[float], mu: float, gamma: float) -> list[float]:
    """sigmoid((score - mu) / gamma) of each. Where all of D_s are alike: 0.5, not what rounding makes of 0 / 0."""
    if all_alike(mu, gamma):
        return [0.5] * len(scores)
    z = (np.asarray(scores, dtype=np.float64) - mu) / gamma
    weights: list[float] = np.exp(-np.logaddexp(0.0, -z)).tolist()
    return weights


def all_alike(mu: float, gamma: float) -> bool:
    """Whether gamma is 0 but for rounding. Log-likelihoods have one sign, so that |mu| is their size."""
    return gamma <= ROUNDING * abs(mu)
