"""How likely an answer of the student is one that had better been the teacher's: a logistic regression on its
log-probs, by the student alone or by the proxy too, and what sending the doubtful ones on to the teacher comes to.

What is said of it is cross-fitted: each prompt's doubt comes from a model that was fitted without that prompt.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from proxykd.certification.certificate_model import CurvePoint, DoubtBin, DoubtReport, Price
from proxykd.certification.outcomes import DIGITS, Outcome, tally
from proxykd.runs.json_model import JsonModel

FEWEST_PROMPTS, FEWEST_OF_A_KIND = 100, 20
"""Below so many prompts with an outcome, of them so many lost and so many not, no doubt is fitted."""
FOLDS = 10
SHARES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
"""Of the traffic, for which the curve says what comes of sending it on."""
PERCENTS = 100
BINS = 5
PER = 1000
"""Prompts that a cost is told for."""
Floats = NDArray[np.float64]


class Doubt(JsonModel):
    """report/doubt.json: what an answer's doubt is. `thresholds` are by whole percents of the traffic: what is sent on
    is at or above its threshold; of no traffic it is above 1."""

    student_sha256: str
    proxy: str | None = None
    """The adapter, or the base, whose log-probs of the student's answers it reads beside the student's own."""
    means: list[float]
    scales: list[float]
    weights: list[float]
    """Of the features, less their means and over their scales."""
    intercept: float
    thresholds: list[float]
    prompts: int
    certified: list[str]
    """Keys of the certificate's prompts, which nothing is to be trained on."""

    def of(self, *logps: Sequence[float]) -> float:
        """The doubt of an answer by the log-probs of its tokens, nats, the student's and the proxy's where it has one:
        between 0 and 1."""
        parts = zip(features(*logps), self.means, self.scales, self.weights, strict=True)
        at = self.intercept + math.fsum(weight * (value - mean) / scale for value, mean, scale, weight in parts)
        return 1 / (1 + math.exp(-max(-50.0, min(50.0, at))))

    def threshold(self, share: float) -> float:
        """For a share of the traffic, to the percent."""
        return self.thresholds[round(PERCENTS * share)]


@dataclass(frozen=True)
class Observation:
    """One prompt of a certificate: the log-probs of the student's answer by each model that was asked, what came of
    it, and how far it was `lost`: 1 where it is wrong by the gold answer, or the judge prefers the teacher's in both
    orders; a tie is half lost."""

    id: str
    logps: tuple[tuple[float, ...], ...]
    outcome: Outcome
    lost: float


def features(*logps: Sequence[float]) -> tuple[float, ...]:
    """What of an answer's log-probs tells, of each model's: their mean, the lowest of them, their sum."""
    return tuple(one for each in logps for one in (math.fsum(each) / len(each), min(each), math.fsum(each)))


def doubt_of(
    observations: Sequence[Observation],
    student_sha256: str,
    certified: Iterable[str],
    price: Price | None,
    proxy: str | None = None,
) -> tuple[DoubtReport, Doubt | None]:
    """What the doubt is worth, and the doubt itself; None where there are too few prompts to fit one. `certified` are
    the keys of all the certificate's prompts, `proxy` is who was asked beside the student."""
    read = sorted((one for one in observations if one.outcome.read), key=lambda one: one.id)
    lost_N = np.array([one.lost for one in read])
    lost = int((lost_N > 0.5).sum())
    if (more := _more_needed(len(read), lost)) != 0:
        return DoubtReport(prompts=len(read), lost=lost, more=more), None
    features_NF = np.array([features(*one.logps) for one in read])
    doubts_N = cross_fitted(features_NF, lost_N)
    model = fitted(features_NF, lost_N)
    final = Doubt(
        student_sha256=student_sha256,
        proxy=proxy,
        means=_listed(model.means),
        scales=_listed(model.scales),
        weights=_listed(model.weights),
        intercept=round(model.intercept, DIGITS),
        thresholds=[],
        prompts=len(read),
        certified=sorted(certified),
    )
    ranked = sorted((final.of(*one.logps) for one in read), reverse=True)
    final = final.model_copy(update={"thresholds": [_cut(ranked, p / PERCENTS) for p in range(PERCENTS + 1)]})
    ranking, p_ranking = _ranking(doubts_N, lost_N > 0.5)
    report = DoubtReport(
        prompts=len(read),
        lost=lost,
        more=0,
        ranking=round(ranking, DIGITS),
        p_ranking=round(p_ranking, DIGITS),
        brier=round(float(((doubts_N - lost_N) ** 2).mean()), DIGITS),
        brier_of_mean=round(float(lost_N.var()), DIGITS),
        bins=tuple(_bins(doubts_N, lost_N)),
        curve=tuple(_point(read, doubts_N, share, final.threshold(share), price) for share in SHARES),
        price=price,
    )
    return report, final


def cross_fitted(features_NF: Floats, lost_N: Floats) -> Floats:
    """Every prompt's doubt by a model of the other folds' prompts; a fold is every tenth prompt."""
    fold_N, doubts_N = np.arange(len(lost_N)) % FOLDS, np.empty(len(lost_N))
    for fold in range(FOLDS):
        here = fold_N == fold
        doubts_N[here] = fitted(features_NF[~here], lost_N[~here]).of(features_NF[here])
    return doubts_N.round(DIGITS)


def _more_needed(prompts: int, lost: int) -> int | None:
    """How many prompts more a doubt takes, were they like those so far; None where none of a kind has been seen."""
    rarer = min(lost, prompts - lost)
    if prompts and not rarer:
        return None
    if not prompts:
        return FEWEST_PROMPTS
    return max(0, FEWEST_PROMPTS - prompts, math.ceil(FEWEST_OF_A_KIND * prompts / rarer) - prompts)


@dataclass(frozen=True)
class Model:
    """Logistic, on features less their means and over their scales."""

    means: Floats
    scales: Floats
    weights: Floats
    intercept: float

    def of(self, features_NF: Floats) -> Floats:
        return 1 / (1 + np.exp(-(self.intercept + (features_NF - self.means) / self.scales @ self.weights)))


def fitted(features_NF: Floats, lost_N: Floats) -> Model:
    """A prompt that is partly lost counts as lost by that part, and as not lost by the rest."""
    from sklearn.linear_model import LogisticRegression

    means, scales = features_NF.mean(0), np.maximum(features_NF.std(0), 1e-6)
    scaled = (features_NF - means) / scales
    found = LogisticRegression(solver="newton-cholesky", tol=1e-10).fit(
        np.concatenate([scaled, scaled]),
        np.repeat([1, 0], len(lost_N)),
        sample_weight=np.concatenate([lost_N, 1 - lost_N]),
    )
    return Model(means, scales, found.coef_[0], float(found.intercept_[0]))


def _cut(ranked: Sequence[float], share: float) -> float:
    """The lowest doubt, rounded down, of a share of the prompts that are ranked by theirs; above 1 for none of them."""
    count = round(share * len(ranked))
    return 1.1 if not count else math.floor(ranked[count - 1] * 10**DIGITS) / 10**DIGITS


def _point(
    read: Sequence[Observation], doubts_N: Floats, share: float, threshold: float, price: Price | None
) -> CurvePoint:
    """The most doubtful prompts have the teacher's answer, and so a net of 0."""
    count = round(share * len(read))
    sent = {int(i) for i in np.argsort(-doubts_N, kind="stable")[:count]}
    after = tally([Outcome(0.0, 0.0) if i in sent else one.outcome for i, one in enumerate(read)])
    nets = sorted(one.outcome.worst for one in read)
    return CurvePoint(
        share=share,
        threshold=threshold,
        sent=count,
        answers=after,
        at_random=round(math.fsum(nets) / len(read) * (1 - count / len(read)), DIGITS),
        at_best=round(math.fsum(nets[count:]) / len(read), DIGITS),
        cost=None if price is None else round(PER * count / len(read) * price.reply, DIGITS),
    )


def _ranking(doubts_N: Floats, lost_N: NDArray[np.bool_]) -> tuple[float, float]:
    """How often a lost answer has a higher doubt than one that is not lost, and Mann and Whitney's p-value against a
    doubt that knows nothing."""
    from scipy.stats import mannwhitneyu

    found = mannwhitneyu(doubts_N[lost_N], doubts_N[~lost_N], alternative="greater")
    return float(found.statistic) / (int(lost_N.sum()) * int((~lost_N).sum())), float(found.pvalue)


def _bins(doubts_N: Floats, lost_N: Floats) -> list[DoubtBin]:
    parts = np.array_split(np.argsort(doubts_N, kind="stable"), BINS)
    return [
        DoubtBin(
            prompts=len(part),
            doubt=round(float(doubts_N[part].mean()), DIGITS),
            lost=round(float(lost_N[part].mean()), DIGITS),
        )
        for part in parts
    ]


def _listed(values: Floats) -> list[float]:
    return [round(float(value), DIGITS) for value in values]
