"""Quality against training records: the arms of a study that run with fewer of them as well."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from proxykd.study.comparison import MEASURES, QUALITIES, compared, runs_of
from proxykd.study.studies import StudyConfig
from proxykd.study.study_model import ArmReport, Row


def size_table(study: StudyConfig, arms: Sequence[ArmReport]) -> list[Row]:
    """A row an arm and size, all of its training records last: means over seeds with half their 95 % intervals, and
    the difference to the reference of the same size, paired by seed. Empty for a study without sizes."""
    if study.sizes is None:
        return []
    rows = []
    for name in study.sizes.arms:
        for size in (*sorted(study.sizes.records), None):
            seeds = runs_of(arms, name, size)
            reference = runs_of(arms, study.reference, size) if name != study.reference else {}
            records = fmean(arm.records for arm in seeds.values())
            row: Row = {"arm": name, "title": study.title(name), "size": size, "records": records, "seeds": len(seeds)}
            for key in (*QUALITIES, "device_hours"):
                row |= compared(key, MEASURES[key][1], seeds, reference)
            rows.append(row)
    return rows
