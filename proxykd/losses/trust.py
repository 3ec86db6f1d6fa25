"""Equation (9): how far a record is trusted, w = sigmoid((score - mu) / gamma). Its one home, in float64.

A record's score is log p(y given x) by the aligned proxy, in nats: summed over tokens, or their mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

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
        """As a stage's result or a report tells it."""
        return cls(labels["adapter"], labels["mu"], labels["gamma"], labels["reduction"])

    def judge(self, sequence_logp: float, tokens: int) -> tuple[float | None, float]:
        """A completion's z-score and its weight sigmoid(z). Where all records of D_s are alike: None and 0.5."""
        [weight] = self.weights([sequence_logp], [tokens])
        if all_alike(self.mu, self.gamma):
            return None, weight
        [score] = scores([sequence_logp], [tokens], self.reduction)
        return (score - self.mu) / self.gamma, weight

    def weights(self, sequence_logps: Sequence[float], tokens: Sequence[int]) -> list[float]:
        """The weights of many completions."""
        return trust_weights(scores(sequence_logps, tokens, self.reduction), self.mu, self.gamma)


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
