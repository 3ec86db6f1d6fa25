"""What report.json and a run's page tell alike of its stages' results.

A block is None until its stage has finished; what only the evaluation knows is None within it until then.
"""

from __future__ import annotations

from pydantic import Field

from proxykd.data.corpus_store import manifest
from proxykd.evaluation.measures import Fidelity, LabelSizes, MassShares, TrustStatistics
from proxykd.runs.json_model import JsonModel
from proxykd.runs.storage import RunDirectory
from proxykd.stages.align import RoundResult
from proxykd.stages.distil import DistilResult
from proxykd.stages.evaluate import EVALUATE
from proxykd.stages.on_policy import ON_POLICY, OnPolicyResult
from proxykd.stages.results import Results
from proxykd.stages.score import SCORE
from proxykd.stages.trained import StepFacts, TrainedResult


class TeacherFacts(JsonModel):
    model: str
    local: bool


class CorpusCounts(JsonModel):
    """Records in all and by slice, those dropped by reason, those truncated, and completion tokens."""

    records: int
    validation: int
    test: int
    warmup: int
    alignment: int
    distillation: int
    dropped: dict[str, int]
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


class LabelsReport(LabelSizes):
    """The soft labels' size and mass, and by K the share of tokens with more than 0.95 of it in the K likeliest."""

    share_mass_over_095: MassShares | None


class TrustReport(TrustStatistics):
    """Equation (9)'s mu and gamma, whose they are, the histogram of weights, and their rank correlation with the true
    KL where a teacher's seal may be opened."""

    spearman_vs_true_kl: float | None


def corpus_counts(run: RunDirectory) -> CorpusCounts:
    """The counts of the corpus as it is now, with all that it has grown by."""
    counts = manifest(run)
    return CorpusCounts.model_validate({name: counts[name] for name in CorpusCounts.model_fields})


def round_report(result: RoundResult) -> RoundReport:
    """The round without its steps."""
    return RoundReport(**result.model_dump(exclude={"steps"}))


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
