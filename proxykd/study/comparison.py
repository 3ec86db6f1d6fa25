"""What arms are compared by: a measure's mean over seeds with its interval, and its difference, paired by seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean, stdev

from proxykd.evaluation.standard_errors import student_t
from proxykd.study.study_model import ArmReport, Row

Measure = Callable[[ArmReport], float | None]
BySeed = dict[int, ArmReport]

MEASURES: dict[str, tuple[str, Measure]] = {
    "held_out_nll": ("NLL a token", lambda arm: arm.student.held_out_nll),
    "nll_a_byte": ("NLL a byte", lambda arm: arm.student.nll_a_byte),
    "true_kl": ("true KL", lambda arm: arm.sealed_teacher.student if arm.sealed_teacher else None),
    "top1_agreement": ("top-1", lambda arm: arm.student.top1_agreement),
    "device_hours": ("device-hours", lambda arm: arm.device_hours),
    "sequence_agreement": ("whole sequence", lambda arm: arm.student.sequence_agreement),
    "source_nll": ("its source's NLL", lambda arm: arm.source.held_out_nll if arm.source else None),
    "source_true_kl": ("its source's true KL", lambda arm: arm.sealed_teacher.source if arm.sealed_teacher else None),
}
"""What each arm is compared by, on the test slice. A student's source is the model whose distribution it learned."""
QUALITIES = ("true_kl", "held_out_nll")
"""The measures of quality against training records; of both less is better."""


def runs_of(arms: Sequence[ArmReport], name: str | None, size: int | None = None) -> BySeed:
    """An arm's runs at one of its sizes, by default on all of its training records; empty where there are none."""
    return {arm.seed: arm for arm in arms if arm.name == name and arm.size == size}


def compared(key: str, measure: Measure, seeds: BySeed, reference: BySeed) -> Row:
    """A measure's mean over an arm's seeds, and its difference to the reference's, unless that is empty."""
    values = {seed: value for seed, arm in seeds.items() if (value := measure(arm)) is not None}
    cells: Row = {}
    cells[key], cells[f"{key}_ci"] = mean_and_interval(list(values.values()))
    if reference:
        pairs = [(value, measure(reference[seed])) for seed, value in values.items()]
        differences = [mine - theirs for mine, theirs in pairs if theirs is not None]
        cells[f"{key}_difference"], cells[f"{key}_difference_ci"] = mean_and_interval(differences)
    return cells


def mean_and_interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """The mean, and half the 95 % confidence interval by Student's t; None for fewer than one, or two, values."""
    if not values:
        return None, None
    if len(values) == 1:
        return values[0], None
    t = student_t(0.975, len(values) - 1)
    return fmean(values), t * stdev(values) / math.sqrt(len(values))


def known_measures(rows: Sequence[Row]) -> dict[str, str]:
    """The measures that any row of a table has, with their titles; one that is 0 in all of them tells nothing."""
    return {key: title for key, (title, _) in MEASURES.items() if any(row.get(key) for row in rows)}
