"""A study's report.json, as its page, figures and tables know it (docs/design.md, report.json)."""

from __future__ import annotations

from typing import Any

from proxykd.evaluation.measures import Fidelity, MassShares
from proxykd.report.blocks import RoundReport, TrustReport
from proxykd.report.provenance import Hardware
from proxykd.report.report_model import Benchmarks, StageCost
from proxykd.runs.json_model import JsonModel
from proxykd.stages.trained import CurvePoint

Row = dict[str, Any]
"""Of a table: beside its names a column a measure or task, each `key` with `key_ci`, and for all arms but the full
method `key_difference` and `key_difference_ci`."""


class StudyFacts(JsonModel):
    id: str
    name: str
    seeds: list[int]
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
    """One arm with one seed: the test slice, save where a word says validation."""

    name: str
    seed: int
    run: str
    proxy: Fidelity | None
    """The one that gave the labels."""
    source: Fidelity | None
    """The model whose distribution the student learned."""
    student: Fidelity
    student_before: Fidelity
    curve: list[CurvePoint]
    """Validation."""
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


class StageHours(JsonModel):
    stage: str
    device_hours: float
    to_sft: float | None
    """The ratio to the warm-up's."""


class StudyReport(JsonModel):
    study: StudyFacts
    arms: list[ArmReport]
    table: list[Row]
    benchmarks: list[Row]
    costs: list[StageHours]
