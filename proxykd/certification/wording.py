"""What a certificate says in words, alike on a terminal and on its page."""

from __future__ import annotations

from proxykd.certification.certificate_model import (
    Certificate,
    CurvePoint,
    DoubtReport,
    JudgeReport,
    LengthBias,
    Share,
    SliceVerdict,
    Tally,
)
from proxykd.certification.doubt import FEWEST_OF_A_KIND, FEWEST_PROMPTS
from proxykd.certification.spending import Spent
from proxykd.certification.verdicts import LEVEL, MOST_PROMPTS, Verdict


def signed(value: float | None, digits: int = 3) -> str:
    """With its sign, the one minus of pages; nothing for None."""
    return "" if value is None else f"{value:+.{digits}f}".replace("-", "−")


def bounds(tally: Tally) -> str:
    return "" if tally.low is None else f"{signed(tally.low)} to {signed(tally.high)}"


def wanted(one: SliceVerdict) -> str:
    """How many prompts more a slice needs."""
    if one.verdict is not Verdict.UNDECIDED:
        return ""
    return f"more than {MOST_PROMPTS:,}" if one.more is None else f"{one.more:,}"


def sentence(certificate: Certificate) -> str:
    """The verdict over all prompts."""
    one, margin = certificate.overall, certificate.margin
    seen = f"over {one.student.prompts} prompts its net is {signed(one.student.net)} ({bounds(one.student)})"
    if one.student.net is None:
        seen = f"none of {one.student.prompts} prompts could be compared"
    if one.verdict is Verdict.READY:
        return f"READY: {seen}, no worse than the teacher by {margin:g} or more."
    if one.verdict is Verdict.NOT_READY:
        return f"NOT READY: {seen}, worse than the teacher by more than {margin:g}."
    if one.more is None and left_open_by_judge(one.student, margin):
        return (
            f"NOT ENOUGH DATA: {seen}; {one.student.unread} of them lack a verdict, and as long as so many do, no "
            f"number of prompts would tell: it takes a judge whose replies hold one."
        )
    if one.more is None:
        return f"NOT ENOUGH DATA: {seen}, so near to the margin of {margin:g} that no number of prompts would tell."
    return f"NOT ENOUGH DATA: {seen}; about {one.more:,} prompts more would tell whether it is worse by {margin:g}."


def left_open_by_judge(tally: Tally, margin: float) -> bool:
    """Whether prompts without a verdict could turn the net either way, however well the others are known: with a share
    u of them, it lies between (1 - u) net - u and (1 - u) net + u."""
    if not tally.prompts:
        return False
    unread = tally.unread / tally.prompts
    return abs((1 - unread) * (tally.net or 0.0) + margin) < unread


def doubts(certificate: Certificate) -> list[tuple[str, DoubtReport]]:
    """Those that a certificate tells of, by whose log-probs they are."""
    found = {"the student's": certificate.doubt, "the student's and the proxy's": certificate.doubt_with_proxy}
    return [(whose, doubt) for whose, doubt in found.items() if doubt is not None]


def doubt_sentence(doubt: DoubtReport) -> str:
    """What the doubt is worth, or why there is none."""
    if not doubt.curve or doubt.ranking is None:
        return f"doubt: none is fitted: {not_enough(doubt)}"
    tells = "" if (doubt.p_ranking or 0) <= LEVEL else ", which may be chance: it tells nothing that is shown"
    return (
        f"doubt: a lost answer has a higher one than another in {doubt.ranking:.0%} (p {doubt.p_ranking:.3f}{tells}); "
        f"its mean squared error is {doubt.brier:.4f}, that of one doubt for all {doubt.brier_of_mean:.4f}"
    )


def not_enough(doubt: DoubtReport) -> str:
    """Why no doubt is fitted, and what it takes."""
    seen = f"not enough data, {doubt.lost} of {doubt.prompts} answers lost"
    wants = f"it takes {FEWEST_PROMPTS} prompts, {FEWEST_OF_A_KIND} of them lost and {FEWEST_OF_A_KIND} not"
    return f"{seen}; {wants}" + ("" if doubt.more is None else f": about {doubt.more:,} prompts more")


def fall_back_sentence(doubt: DoubtReport, threshold: float, teacher: str) -> str:
    """What sending on from a doubt on comes to, by the next point of the curve that sends on as much or more."""
    point = next((one for one in doubt.curve if one.threshold <= threshold), doubt.curve[-1])
    costs = "" if point.cost is None or doubt.price is None else f", {point.cost:.4g} {doubt.price.currency}"
    return (
        f"a doubt of {threshold:.3f} or more goes to {teacher}. Of 1,000 prompts like the certificate's it would be "
        f"{1000 * point.sent / point.answers.prompts:.0f} at most{costs}, and the net {signed(point.answers.net)} "
        f"({bounds(point.answers)}), at random {signed(point.at_random)}\n{doubt_sentence(doubt)}"
    )


def price_sentence(doubt: DoubtReport) -> str:
    """What the costs of a curve are made of."""
    if doubt.price is None:
        return "what a reply of the teacher costs is not known: collection.prices, where it is asked, would tell"
    return f"cost: of 1,000 prompts, {doubt.price.reply:.6g} {doubt.price.currency} a reply by {doubt.price.source}"


def not_worse(point: CurvePoint) -> float:
    """The share of prompts whose answer is not worse than the teacher's."""
    return 1 - point.answers.losses / point.answers.prompts


def judge_sentence(judge: JudgeReport) -> str:
    """How far the judge agrees with itself, and what of it could not be read."""
    parts = [f"judge {', '.join(judge.spent.models)}: {judge.comparisons} comparisons"]
    if judge.swapped is not None:
        parts.append(
            f"{share(judge.swapped)} pairs alike in both orders (the first answer won both times in "
            f"{judge.first_wins_both}, the second in {judge.second_wins_both})"
        )
    if judge.repeated is not None:
        parts.append(f"{share(judge.repeated)} comparisons alike when asked again")
    if judge.unread:
        listed = ", ".join(f"{count} {reason}" for reason, count in judge.unread.items())
        parts.append(f"{sum(judge.unread.values())} without a verdict ({listed}), which count as lost for `ready`")
    return "; ".join([*parts, cost(judge.spent)])


def length_sentence(length: LengthBias) -> str:
    parts = [f"length: the student's answer is the longer one in {length.student_longer:.0%}"]
    if length.longer_won is not None:
        parts.append(f"the longer answer won {share(length.longer_won)} that were won")
    if length.correlation is not None:
        interval = f"{signed(length.low, 2)} to {signed(length.high, 2)}"
        parts.append(f"correlation of net and log length ratio {signed(length.correlation, 2)} ({interval})")
    return "; ".join(parts)


def share(found: Share) -> str:
    return f"{found.agree / found.count:.0%} of {found.count} ({found.low:.0%} to {found.high:.0%})"


def cost(spent: Spent) -> str:
    """What was paid, and what may have been for requests without an answer."""
    tokens = f"{spent.prompt_tokens:,} tokens in, {spent.completion_tokens:,} out"
    lost = spent.unanswered_cost_at_most
    return f"{tokens}, {spent.cost:.4f} {spent.currency}" + (f" (and {lost:.4f} at most unanswered)" if lost else "")
