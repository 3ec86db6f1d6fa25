"""report.json of a finished run, as its readers know it (docs/design.md, report.json)."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from proxykd.errors import RunError
from proxykd.evaluation.benchmarks import TaskScore
from proxykd.evaluation.measures import Fidelity, MeanKl
from proxykd.report.blocks import (
    CorpusCounts,
    LabelsReport,
    RoundReport,
    SftReport,
    StudentSoFar,
    TeacherFacts,
    TrustReport,
)
from proxykd.report.provenance import Hardware
from proxykd.runs.json_model import JsonModel, read_model
from proxykd.runs.run_directory import RunDirectory
from proxykd.stages.retokenise import RetokeniseResult

Benchmarks = dict[str, dict[str, TaskScore]]
"""By model (`proxy`, `student`, `student@<step>`) and task."""


class RunFacts(JsonModel):
    id: str
    name: str
    config_sha256: str
    git_revision: str | None
    """None outside a checkout."""
    started_at: str
    finished_at: str
    """Both in ISO 8601, UTC."""
    hardware: Hardware
    """Of the machine that wrote the report."""


class TeacherReport(TeacherFacts):
    parameters: int | None
    """None where nothing says."""


class StageCost(JsonModel):
    """What a stage took, or one round of it."""

    stage: str
    round: int | None
    seconds: float
    """Over all attempts."""
    records: int
    tokens: int
    devices: int
    busy_seconds: float
    """Without what was waited for."""
    device_hours: float


class ValidationStart(JsonModel):
    """The proxy on the validation slice before its rounds."""

    base: Fidelity
    warmup: Fidelity


class ProxyReport(JsonModel):
    """The proxy whose soft labels the student learned, on the test slice: the base itself where it was not aligned."""

    base: Fidelity
    warmup: Fidelity | None
    aligned: Fidelity
    validation: ValidationStart | None


class AssistantReport(Fidelity):
    adapter: str


class WhiteBoxReport(JsonModel):
    """A white-box baseline's open teacher and its assistant: how close they are to the black-box teacher."""

    teacher: Fidelity
    assistant: AssistantReport | None


class StudentReport(StudentSoFar):
    before: Fidelity
    after: Fidelity


class RoundKl(MeanKl):
    """Of the adapter in force after a round; the warm-up is round 0."""

    adapter: str
    round: int


class StudentKl(JsonModel):
    before: MeanKl
    offline: MeanKl | None
    """Before an on-policy phase, where there was one."""
    after: MeanKl


class WhiteBoxKl(JsonModel):
    teacher: MeanKl
    assistant: MeanKl | None


class SealedTeacherReport(JsonModel):
    """The true KL from the teacher to each model, on the test slice."""

    kl_teacher_proxy: list[RoundKl]
    kl_teacher_student: StudentKl
    kl_teacher_base: MeanKl | None
    kl_teacher_white_box: WhiteBoxKl | None


class RunReport(JsonModel):
    """Everything that a reader of report.json may rely on; `stages` and `rounds` are in the order in which they ran."""

    run: RunFacts
    teacher: TeacherReport
    collection: dict[str, Any] | None
    """The data set's summary (collection/job.py), where the run collected."""
    corpus: CorpusCounts
    stages: list[StageCost]
    rounds: list[RoundReport]
    stop_reason: str
    """Why alignment ended."""
    proxy: ProxyReport | None
    soft_labels: LabelsReport | None
    retokenised: RetokeniseResult | None
    """How the student's own tokenizer meets the proxy's; None where it has that one."""
    trust: TrustReport | None
    white_box: WhiteBoxReport | None
    student: StudentReport
    sft: SftReport | None
    """None where the run trained none."""
    grey_box: dict[str, MeanKl] | None
    """By model, a lower bound of the KL, from the teacher's log-probs where they are known."""
    sealed_teacher: SealedTeacherReport | None
    """None for a black box."""
    benchmarks: Benchmarks = Field(default_factory=dict)
    """What `proxykd evaluate` has found."""


def read_report(run: RunDirectory) -> RunReport:
    """A run's report.json.

    Raises:
        RunError: the run has none yet.
        IntegrityError: another version of the code wrote it.
    """
    if not run.report.exists():
        raise RunError(f"{run.id} has no report yet; go on with: proxykd resume {run.root}")
    return read_model(run.report, RunReport)
