"""report/certificate.json, as its readers know it: what was compared, what came of it, and what is to be known of the
judge."""

from __future__ import annotations

from proxykd.certification.slices import OVERALL
from proxykd.certification.spending import Spent
from proxykd.certification.verdicts import Verdict
from proxykd.runs.json_model import JsonModel

STUDENT = "student"


class Tally(JsonModel):
    """Answers of one model against the teacher's, a prompt once. `net` is the mean of a win (1), a tie (0) and a loss
    (-1) over both orders, `low` and `high` its one-sided 95 % bounds by itself; all None without a prompt."""

    prompts: int
    wins: int
    ties: int
    losses: int
    unread: int
    """Of `prompts`, those that the judge has not judged in both orders."""
    net: float | None
    low: float | None
    high: float | None


class SliceVerdict(JsonModel):
    """`p_ready` and `p_not_ready` hold for all slices together; `more` is how many prompts a verdict still needs."""

    kind: str
    name: str
    verdict: Verdict
    p_ready: float
    p_not_ready: float
    more: int | None
    student: Tally
    beside: dict[str, Tally]
    right: dict[str, float]
    """Of prompts with a gold answer: the share that each model, and the teacher, answered right."""
    examples: list[str]


class Share(JsonModel):
    """`agree` of `count`, with Wilson's 95 % interval."""

    agree: int
    count: int
    low: float
    high: float


class JudgeReport(JsonModel):
    """How far the judge can be relied on. `swapped`: pairs judged alike in both orders; `repeated`: comparisons judged
    alike when asked again; `unread` replies by reason."""

    spent: Spent
    rubric: str | None
    """None for the shipped one."""
    comparisons: int
    unread: dict[str, int]
    swapped: Share | None
    first_wins_both: int
    second_wins_both: int
    repeated: Share | None


class LengthBias(JsonModel):
    """Of judged prompts whose answers differ in length: how often the longer one won, of those that were won, and the
    correlation of the student's net outcome with log(its length / the teacher's), in characters."""

    longer_won: Share | None
    correlation: float | None
    low: float | None
    high: float | None
    student_longer: float
    """Share of the judged prompts."""


class Example(JsonModel):
    """One prompt side by side."""

    prompt: str
    teacher: str
    student: str
    gold: str | None
    net: float
    judge: list[str]
    """Its replies, the student first and then the teacher."""


class Price(JsonModel):
    """Of one reply of the teacher, on average, and from what that is known."""

    reply: float
    currency: str
    source: str


class DoubtBin(JsonModel):
    """Prompts of like doubt: its mean, and the share of them that was lost."""

    prompts: int
    doubt: float
    lost: float


class CurvePoint(JsonModel):
    """What comes of sending a `share` of the traffic on to the teacher: those `sent` have its answer, which counts as a
    tie. `answers` by the doubt; the net `at_random`, and `at_best`, by whoever knew the outcomes. `cost` of 1,000
    prompts."""

    share: float
    threshold: float
    sent: int
    answers: Tally
    at_random: float
    at_best: float
    cost: float | None


class DoubtReport(JsonModel):
    """What log-probs of the student's answers tell of them, each prompt by a model that was fitted without it.
    `prompts` are those with an outcome, `lost` those of them whose answer is wrong, or less than the teacher's; `more`
    prompts are needed to fit a doubt, None where no number can be told, 0 where there is one. Without one the rest is
    empty."""

    prompts: int
    lost: int
    more: int | None
    ranking: float | None = None
    """How often a lost answer has a higher doubt than one that is not: 0.5 knows nothing."""
    p_ranking: float | None = None
    """One-sided, against 0.5."""
    brier: float | None = None
    """The mean squared error of the doubt, and `brier_of_mean` of one doubt for all."""
    brier_of_mean: float | None = None
    bins: tuple[DoubtBin, ...] = ()
    curve: tuple[CurvePoint, ...] = ()
    price: Price | None = None


class Facts(JsonModel):
    """What was compared, by whom and when."""

    run: str
    run_sha256: str
    teacher: str
    student: str
    """What it began as."""
    student_sha256: str
    """Of its files' hashes."""
    models: list[str]
    """Beside the student."""
    source: str
    prompts_sha256: str
    """Of what was asked, whatever its order."""
    settings: dict[str, str | int | float | None]
    """How the models answered."""
    answered_first: str
    answered_last: str


class Certificate(JsonModel):
    facts: Facts
    margin: float
    level: float
    prompts: dict[str, int]
    """`given`, `compared`, of these `exact`, `identical` and `judged`, and `without_teacher`."""
    slices: list[SliceVerdict]
    judge: JudgeReport | None
    length: LengthBias | None
    teacher_spent: Spent | None
    """Where the teacher's answers were collected for this certificate."""
    worst: list[Example]
    doubt: DoubtReport | None = None
    """By the student's own log-probs. None in certificates of before there was one."""
    doubt_with_proxy: DoubtReport | None = None
    """By the proxy's too; None where it was not asked."""

    @property
    def overall(self) -> SliceVerdict:
        return next(one for one in self.slices if one.kind == OVERALL)
