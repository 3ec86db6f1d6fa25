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

    @property
    def overall(self) -> SliceVerdict:
        return next(one for one in self.slices if one.kind == OVERALL)
