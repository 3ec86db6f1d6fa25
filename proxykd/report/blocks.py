"""What report.json and a run's page tell alike of its stages' results.

A block is None until its stage has finished; what only the evaluation knows is None within it until then.
"""

from __future__ import annotations

from pydantic import Field

from proxykd.data.corpus_store import manifest
from proxykd.evaluation.measures import Difference, Fidelity, LabelSizes, MassShares, MeanKl, TrustStatistics
from proxykd.runs.json_model import JsonModel
from proxykd.runs.run_directory import RunDirectory
from proxykd.stages.align import RoundResult
from proxykd.stages.answer import ANSWER, AnswerResult
from proxykd.stages.distil import DistilResult
from proxykd.stages.evaluate import EVALUATE, STUDENT_SFT
from proxykd.stages.on_policy import ON_POLICY, OnPolicyResult
from proxykd.stages.results import Results
from proxykd.stages.score import SCORE
from proxykd.stages.sft import SFT, SftResult
from proxykd.stages.trained import StepFacts, TrainedResult


class TeacherFacts(JsonModel):
    model: str
    local: bool


class CorpusCounts(JsonModel):
    """Records in all and by slice (None for one that the run has not), those dropped by reason, those truncated, those
    that corpus.training_limit leaves out, and completion tokens."""

    records: int
    validation: int
    test: int
    warmup: int | None = None
    alignment: int | None = None
    distillation: int | None = None
    training: int | None = None
    """With corpus.whole_text, in the place of the three above it."""
    dropped: dict[str, int]
    beyond_limit: int = 0
    truncated: int
    tokens: int


class WithoutSteps(TrainedResult):
    """A result of training as reports have it."""

    steps: list[StepFacts] = Field(default_factory=list, exclude=True)


class RoundReport(WithoutSteps, RoundResult):
    """A round's numbers; None for those that rounds of its kind have not."""


class OnPolicyReport(WithoutSteps, OnPolicyResult):
    """The on-policy phase's validation curve, and why it ended."""


class StudentSoFar(WithoutSteps, DistilResult):
    """The student on the test slice, before it was taught and after; what moved it in the distillation, and its
    validation curve there."""

    before: Fidelity | None
    offline: Fidelity | None
    """As the distillation left it, where an on-policy phase followed."""
    after: Fidelity | None
    on_policy: OnPolicyReport | None


class SftReport(WithoutSteps, SftResult):
    """The student that has seen the text alone, on the test slice, and what the run's own is better by."""

    after: Fidelity
    true_kl: MeanKl | None
    """Where the teacher is local."""
    student_less_sft: Difference


class LabelsReport(LabelSizes):
    """The soft labels' size and mass, and by K the share of tokens with more than 0.95 of it in the K likeliest."""

    share_mass_over_095: MassShares | None
    answers: AnswerResult | None = None
    """What the proxy's own answers to prompts without the teacher's add to them."""


class TrustReport(TrustStatistics):
    """Equation (9)'s mu and gamma, whose they are, the histogram of weights, and their rank correlation with the true
    KL where a teacher's seal may be opened."""

    spearman_vs_true_kl: float | None


def corpus_counts(run: RunDirectory) -> CorpusCounts:
    """The counts of the corpus as it is now, with all that it has grown by."""
    counts = manifest(run)
    return CorpusCounts.model_validate({name: counts[name] for name in CorpusCounts.model_fields if name in counts})


def round_report(result: RoundResult) -> RoundReport:
    """The round without its steps."""
    return RoundReport(**result.model_dump(exclude={"steps"}))


def sft(results: Results) -> SftReport | None:
    """Returns the student by SFT, None where the run has none, or the test slice has not seen it yet."""
    trained, evaluated = results.of(SFT), results.of(EVALUATE)
    if trained is None or evaluated is None:
        return None
    assert evaluated.student_less_sft is not None
    return SftReport(
        **trained.model_dump(exclude={"steps"}),
        after=evaluated.models[STUDENT_SFT].fidelity,
        true_kl=evaluated.models[STUDENT_SFT].true_kl,
        student_less_sft=evaluated.student_less_sft,
    )


def on_policy_report(results: Results) -> OnPolicyReport | None:
    """The on-policy phase without its steps, None where the run has none (yet)."""
    found = results.of(ON_POLICY)
    return OnPolicyReport(**found.model_dump(exclude={"steps"})) if found else None


def soft_labels(results: Results) -> LabelsReport | None:
    """Returns sizes and mass of the soft labels, None where the run has scored none (yet)."""
    if (scored := results.of(SCORE)) is None:
        return None
    evaluated = results.of(EVALUATE)
    return LabelsReport(
        **scored.model_dump(include=set(LabelSizes.model_fields)),
        share_mass_over_095=evaluated.share_mass_over_095 if evaluated else None,
        answers=results.of(ANSWER),
    )


def trust(results: Results) -> TrustReport | None:
    """Returns mu, gamma and the trust weights' statistics, None where the run has scored no labels (yet)."""
    if (scored := results.of(SCORE)) is None:
        return None
    evaluated = results.of(EVALUATE)
    return TrustReport(
        **scored.model_dump(include=set(TrustStatistics.model_fields)),
        spearman_vs_true_kl=evaluated.spearman_vs_true_kl if evaluated else None,
    )
