"""A study's report.json, as its page, figures and tables know it (docs/design.md, report.json)."""

from __future__ import annotations

from typing import Any, Literal

from proxykd.evaluation.measures import Fidelity, MassShares
from proxykd.report.blocks import RoundReport, TrustReport
from proxykd.report.provenance import Hardware
from proxykd.report.report_model import Benchmarks, StageCost
from proxykd.runs.json_model import JsonModel
from proxykd.stages.trained import CurvePoint

Row = dict[str, Any]
"""Of a table: beside its names a column a measure or task, each `key` with `key_ci`, and for all arms but the
reference `key_difference` and `key_difference_ci`."""
Bound = Literal["at_least", "at_most"]


class StudyFacts(JsonModel):
    id: str
    name: str
    seeds: list[int]
    reference: str | None
    """The arm that the others' differences are to."""
    git_revision: str | None
    hardware: Hardware


class ArmKl(JsonModel):
    """The true KL from the teacher, nats a token."""

    student: float
    source: float | None
    """Of the model whose distribution the student learned; None where it learned from text alone."""


class Calibration(JsonModel):
    """Each held-out record's trust weight, and the true KL there in nats a token."""

    weight: list[float]
    kl: list[float]


class ArmReport(JsonModel):
    """One arm with one seed and size: the test slice, save where a word says validation."""

    name: str
    seed: int
    size: int | None
    """The `corpus.training_limit` that the study set; None at full size."""
    records: int
    """Training records that its corpus holds: those beside the held-out slices."""
    run: str
    proxy: Fidelity | None
    """The one that gave the labels."""
    source: Fidelity | None
    """The model whose distribution the student learned."""
    student: Fidelity
    student_before: Fidelity
    validation: Fidelity
    """The student on the validation slice, as its last stage has left it: what arms are tuned by."""
    curve: list[CurvePoint]
    """Of its distillation, on the validation slice."""
    sealed_teacher: ArmKl | None
    trust: TrustReport | None
    calibration: Calibration | None
    alignment: list[Fidelity]
    """The proxy on the validation slice: base, warm-up, every round."""
    mass: MassShares | None
    parameters: dict[str, int | None]
    rounds: list[RoundReport]
    benchmarks: Benchmarks
    device_hours: float
    own_device_hours: float
    """Of the stages that the run made itself."""
    stages: list[StageCost]


class SeedSaving(JsonModel):
    """The share of the reference's training records by which an arm needs fewer for the same quality, with one seed."""

    seed: int
    saving: float
    bound: Bound | None
    """None where `saving` is a number itself."""


class Saving(JsonModel):
    """What an arm saves by a measure (proxykd/study/saving.py)."""

    arm: str
    title: str
    measure: str
    seeds: list[SeedSaving]
    mean: float | None
    """Over seeds; None where some have a bound from below and some from above."""
    low: float | None
    high: float | None
    """Both of the bootstrap's 95 % interval; None with one seed, or bounds."""
    bound: Bound | None


class StageHours(JsonModel):
    stage: str
    device_hours: float
    to_sft: float | None
    """The ratio to the warm-up's."""


class StudyReport(JsonModel):
    study: StudyFacts
    arms: list[ArmReport]
    table: list[Row]
    """At full size, as all that follows but `sizes`."""
    sizes: list[Row]
    """A row an arm and size; empty for a study without sizes."""
    savings: list[Saving]
    benchmarks: list[Row]
    costs: list[StageHours]

    @property
    def at_full_size(self) -> list[ArmReport]:
        return [arm for arm in self.arms if arm.size is None]

    @property
    def reference_title(self) -> str | None:
        """None where no arm is the reference."""
        return next((row["title"] for row in self.table if row["arm"] == self.study.reference), None)
