"""The certificate: report/certificate.json, from what is stored alone, so that it is the same whenever it is asked
for."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from proxykd.certification.answers import Answer, AnswerScore
from proxykd.certification.certificate_model import (
    STUDENT,
    Certificate,
    Example,
    Facts,
    JudgeReport,
    LengthBias,
    Share,
    SliceVerdict,
)
from proxykd.certification.doubt import Observation
from proxykd.certification.judging import Comparison, Judgement, Order, conversation, same
from proxykd.certification.judging import consistency as consistency_of
from proxykd.certification.outcomes import DIGITS, Outcome, tally
from proxykd.certification.prompts import Prompt
from proxykd.certification.slices import slices_of
from proxykd.certification.spending import Spent, at
from proxykd.certification.verdicts import LEVEL, counted, decide
from proxykd.errors import BenchmarkError
from proxykd.evaluation.standard_errors import wilson

WORST = 8
TWO_SIDED = 1.959964
"""Standard errors to either side of a 95 % interval."""


@dataclass(frozen=True)
class Evidence:
    """All that a certificate is made of."""

    prompts: Sequence[Prompt]
    answers: Mapping[str, Mapping[str, Answer]]
    """By model and prompt."""
    comparisons: Sequence[Comparison] = ()
    judged: Mapping[tuple[str, str, Order], Judgement] = field(default_factory=dict)
    judge: Spent | None = None
    rubric: str | None = None
    teacher: Spent | None = None


def certify(evidence: Evidence, facts: Facts, margin: float, by: Sequence[str]) -> Certificate:
    """The certificate of prompts all of which every model has answered.

    Raises:
        BenchmarkError: the teacher has answered none of them.
    """
    compared = [prompt for prompt in evidence.prompts if prompt.teacher is not None]
    if not compared:
        raise BenchmarkError(
            f"none of {len(evidence.prompts)} prompts has an answer of the teacher; ask it with --teacher CONFIG, or "
            f"give `completion` with each prompt"
        )
    slices = slices_of(compared, by)
    outcomes = {model: [_outcome(evidence, model, one) for one in compared] for model in evidence.answers}
    mine = outcomes[STUDENT]
    worst = np.array([counted([mine[i].worst for i in one.places]) for one in slices])
    best = np.array([counted([mine[i].best for i in one.places]) for one in slices])
    verdicts = [
        SliceVerdict(
            kind=one.kind,
            name=one.name,
            verdict=decision.verdict,
            p_ready=round(decision.p_ready, DIGITS),
            p_not_ready=round(decision.p_not_ready, DIGITS),
            more=decision.more,
            student=tally([mine[i] for i in one.places]),
            beside={name: tally([other[i] for i in one.places]) for name, other in outcomes.items() if name != STUDENT},
            right=_right(evidence, [compared[i] for i in one.places]),
            examples=[compared[i].text for i in one.examples],
        )
        for one, decision in zip(slices, decide(worst, best, margin), strict=True)
    ]
    return Certificate(
        facts=facts,
        margin=margin,
        level=LEVEL,
        prompts=_counts(evidence, compared),
        slices=verdicts,
        judge=_judge(evidence),
        length=_length_bias(evidence, compared, mine),
        teacher_spent=evidence.teacher,
        worst=_worst(evidence, compared, mine),
    )


def observations(evidence: Evidence, *scores: Mapping[str, AnswerScore]) -> list[Observation]:
    """What came of the student's answers, beside the log-probs that each model gives them."""
    found = []
    for prompt in evidence.prompts:
        if prompt.teacher is not None:
            outcome = _outcome(evidence, STUDENT, prompt)
            lost = (1 - outcome.worst) / 2
            if prompt.gold is not None:
                lost = float(not prompt.right(evidence.answers[STUDENT][prompt.id].text))
            found.append(Observation(prompt.id, tuple(one[prompt.id].logps for one in scores), outcome, lost))
    return found


def times(answers: Mapping[str, Mapping[str, Answer]]) -> tuple[str, str]:
    """When the first and the last answer was given."""
    found = [one.time for said in answers.values() for one in said.values()]
    return at(min(found)), at(max(found))


def _outcome(evidence: Evidence, model: str, prompt: Prompt) -> Outcome:
    answer = evidence.answers[model][prompt.id].text
    assert prompt.teacher is not None
    if prompt.gold is not None:
        exact = float(prompt.right(answer)) - float(prompt.right(prompt.teacher))
        return Outcome(exact, exact)
    if same(answer, prompt.teacher):
        return Outcome(0.0, 0.0)
    values = [evidence.judged[prompt.id, model, order].value for order in ("model first", "teacher first")]
    worst, best = (sum(unread if value is None else value for value in values) / 2 for unread in (-1, 1))
    return Outcome(worst, best)


def _right(evidence: Evidence, prompts: Sequence[Prompt]) -> dict[str, float]:
    gold = [prompt for prompt in prompts if prompt.gold is not None]
    if not gold:
        return {}
    said = {name: [answers[one.id].text for one in gold] for name, answers in evidence.answers.items()}
    said["teacher"] = [one.teacher or "" for one in gold]
    return {
        name: sum(one.right(text) for one, text in zip(gold, texts, strict=True)) / len(gold)
        for name, texts in said.items()
    }


def _counts(evidence: Evidence, compared: Sequence[Prompt]) -> dict[str, int]:
    exact = sum(prompt.gold is not None for prompt in compared)
    judged = len({one.prompt.id for one in evidence.comparisons if one.subject == STUDENT})
    return {
        "given": len(evidence.prompts),
        "compared": len(compared),
        "exact": exact,
        "identical": len(compared) - exact - judged,
        "judged": judged,
        "without_teacher": len(evidence.prompts) - len(compared),
    }


def _judge(evidence: Evidence) -> JudgeReport | None:
    if evidence.judge is None:
        return None
    found = consistency_of(evidence.judged)
    lost = Counter(judgement.lost for judgement in evidence.judged.values() if judgement.value is None)
    return JudgeReport(
        spent=evidence.judge,
        rubric=evidence.rubric,
        comparisons=len(evidence.judged),
        unread=dict(sorted(lost.items())),
        swapped=_share(found.swapped_agree, found.swapped),
        first_wins_both=found.first_wins_both,
        second_wins_both=found.second_wins_both,
        repeated=_share(found.repeated_agree, found.repeated),
    )


def _length_bias(evidence: Evidence, compared: Sequence[Prompt], outcomes: Sequence[Outcome]) -> LengthBias | None:
    judged = {one.prompt.id for one in evidence.comparisons if one.subject == STUDENT}
    pairs = [
        (math.log((1 + len(evidence.answers[STUDENT][prompt.id].text)) / (1 + len(prompt.teacher or ""))), one.worst)
        for prompt, one in zip(compared, outcomes, strict=True)
        if prompt.id in judged and one.read
    ]
    if not pairs:
        return None
    won = [(length > 0) == (net > 0) for length, net in pairs if net and length]
    correlation, low, high = _correlation(np.array(pairs))
    return LengthBias(
        longer_won=_share(sum(won), len(won)),
        correlation=correlation,
        low=low,
        high=high,
        student_longer=sum(length > 0 for length, _ in pairs) / len(pairs),
    )


def _correlation(pairs: np.ndarray) -> tuple[float | None, float | None, float | None]:
    """Pearson's, with Fisher's 95 % interval; None where one of the two does not vary."""
    if len(pairs) < 4 or not np.ptp(pairs, axis=0).all():
        return None, None, None
    found = float(np.corrcoef(pairs.T)[0, 1])
    centre, half = math.atanh(max(-0.999999, min(0.999999, found))), TWO_SIDED / math.sqrt(len(pairs) - 3)
    return found, math.tanh(centre - half), math.tanh(centre + half)


def _share(agree: int, count: int) -> Share | None:
    if not count:
        return None
    low, high = wilson(agree / count, count, TWO_SIDED)
    return Share(agree=agree, count=count, low=low, high=high)


def _worst(evidence: Evidence, compared: Sequence[Prompt], outcomes: Sequence[Outcome]) -> list[Example]:
    """The prompts that the student lost by most, the first of them in the order of the prompts."""
    lost = [(one.worst, place) for place, one in enumerate(outcomes) if one.read and one.worst < 0]
    found = []
    for net, place in sorted(lost)[:WORST]:
        prompt = compared[place]
        orders: tuple[Order, ...] = ("model first", "teacher first")
        said = [evidence.judged.get((prompt.id, STUDENT, order), Judgement(None)).reply for order in orders]
        found.append(
            Example(
                prompt=conversation(prompt),
                teacher=prompt.teacher or "",
                student=evidence.answers[STUDENT][prompt.id].text,
                gold=prompt.gold,
                net=net,
                judge=[text for text in said if text],
            )
        )
    return found
