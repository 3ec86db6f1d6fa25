"""The numbers of a run's page, as the dashboard's JavaScript reads them (docs/api.md, Runs)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

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
from proxykd.report.outcome import Outcome
from proxykd.runs.json_model import JsonModel

Columns = dict[str, list[float | None]]
"""Steps of training, a column a measure; each term's gradient norm as grad_<term>, None where it was not measured."""


class OverviewRun(JsonModel):
    id: str
    name: str
    config_sha256: str
    started_at: float | None
    finished_at: float | None
    """Both in seconds since 1970."""
    teacher: TeacherFacts
    proxy: str
    student: str
    source: str
    """Of what the student learns from, `distillation.source`."""
    parameters: dict[str, int | None]
    layers_cut: dict[str, int]
    """Of `proxy` and `student`: decoder layers that were left out before training."""


class PipelineStage(JsonModel):
    """One stage, or one round of it, that is begun or ahead."""

    stage: str
    round: int | None
    key: str
    state: Literal["done", "begun", "ahead"]


class DoneStage(PipelineStage):
    """With what it cost (stages/stage.py, Finished)."""

    seconds: float
    busy_seconds: float
    records: int
    tokens: int
    devices: int
    attempts: int
    started_at: float


class ProxyPoint(JsonModel):
    """The proxy at one point of its way.

    A rejected round's own adapter is judged on the validation slice; what the test slice saw is the one in force.
    """

    label: str
    adapter: str
    validation: Fidelity | None
    test: Fidelity | None
    true_kl: MeanKl | None
    round: int | None
    decision: str | None = Field(default=None, exclude_if=lambda value: value is None)
    reason: str | None = Field(default=None, exclude_if=lambda value: value is None)
    """Both of rounds alone."""


class RoundOverview(RoundReport):
    accuracy_after_range: tuple[float, float] | None
    """Of `dpo_accuracy_after`, one standard error to either side, by Wilson's score interval over its pairs."""
    inspected: bool
    """Whether its pairs can be looked at."""


class TrustOverview(TrustReport):
    calibration: str | None
    """In words, whether a higher weight went with a lower true KL."""


class StudentKlSoFar(JsonModel):
    before: MeanKl | None
    offline: MeanKl | None
    after: MeanKl | None


class StudentOverview(StudentSoFar):
    true_kl: StudentKlSoFar
    sft: SftReport | None


class CoordinatorClaim(JsonModel):
    """A start or restart of the run's coordinator."""

    epoch: int
    time: float
    host: str | None
    job: str | None


class Overview(JsonModel):
    """What a run has found so far. Every part is None, or empty, until its stage has finished."""

    run: OverviewRun
    outcome: Outcome | None
    pipeline: list[DoneStage | PipelineStage]
    corpus: CorpusCounts | None
    fidelity: list[ProxyPoint]
    rounds: list[RoundOverview]
    steps: dict[str, Columns]
    """By the stage's key: warmup, align-01."""
    soft_labels: LabelsReport | None
    trust: TrustOverview | None
    student: StudentOverview | None
    coordinators: list[CoordinatorClaim]
