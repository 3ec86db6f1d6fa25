"""The saving: how many fewer training records give a student as good as the reference's, by seed and over seeds."""

from __future__ import annotations

import random
from collections.abc import Sequence
from statistics import fmean, quantiles

from proxykd.study.comparison import MEASURES, QUALITIES, BySeed, Measure, runs_of
from proxykd.study.studies import StudyConfig
from proxykd.study.study_model import ArmReport, Bound, Saving, SeedSaving

DRAWS = 10_000
"""Of a bootstrap interval."""
WORDS: dict[Bound | None, str] = {None: "", "at_least": "at least ", "at_most": "at most "}


def savings(study: StudyConfig, arms: Sequence[ArmReport]) -> list[Saving]:
    """What each sized arm but the reference saves, by each measure of quality that the runs have."""
    if study.sizes is None:
        return []
    reference = runs_of(arms, study.reference)
    found = []
    for name in study.sizes.arms:
        sizes = [runs_of(arms, name, size) for size in (*study.sizes.records, None)]
        for key in QUALITIES if name != study.reference else ():
            if seeds := _by_seed(MEASURES[key][1], sizes, reference):
                found.append(over_seeds(name, study.title(name), key, seeds))
    return found


def _by_seed(measure: Measure, sizes: Sequence[BySeed], reference: BySeed) -> list[SeedSaving]:
    """Of the seeds in which the reference's quality is known."""
    found = []
    for seed, full in reference.items():
        runs = [size[seed] for size in sizes]
        curve = [(run.records, value) for run in runs if (value := measure(run)) is not None]
        if curve and (target := measure(full)) is not None:
            saving, bound = saving_of(sorted(curve), target, full.records)
            found.append(SeedSaving(seed=seed, saving=saving, bound=bound))
    return found


def saving_of(curve: Sequence[tuple[float, float]], target: float, records: float) -> tuple[float, Bound | None]:
    """1 - x / `records`, x being the records from which on a curve is as good as `target`; and whether it is a bound.

    The curve has records and quality, of which less is better, by rising records, and is linear in log(records) between
    them. With n the most records whose quality q is worse than the target, and m, of quality r, the next:

        x = n * (m / n) ** ((q - target) / (q - r))

    Where even the fewest are as good, x is those, and the saving at least this; where all of them are not, x is all,
    and the saving at most this.
    """
    above = [number for number, (_, quality) in enumerate(curve) if quality > target]
    if not above:
        return 1 - curve[0][0] / records, "at_least"
    if above[-1] == len(curve) - 1:
        return 1 - curve[-1][0] / records, "at_most"
    (n, q), (m, r) = curve[above[-1]], curve[above[-1] + 1]
    return 1 - n * (m / n) ** ((q - target) / (q - r)) / records, None


def over_seeds(arm: str, title: str, measure: str, seeds: list[SeedSaving]) -> Saving:
    """The mean over seeds, and a bootstrap interval where each of several seeds has a number and not a bound.

    Seeds with bounds of one kind make the mean such a bound; where both kinds are, there is no mean.
    """
    values, bounds = [one.saving for one in seeds], {one.bound for one in seeds if one.bound}
    low, high = bootstrap(values) if len(seeds) > 1 and not bounds else (None, None)
    mean, bound = (None, None) if len(bounds) > 1 else (fmean(values), next(iter(bounds), None))
    return Saving(arm=arm, title=title, measure=measure, seeds=seeds, mean=mean, low=low, high=high, bound=bound)


def bootstrap(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % percentile interval of the mean: 2.5 % and 97.5 % points of `DRAWS` means of as many values, drawn with
    replacement by a generator of seed 0."""
    generator = random.Random(0)
    points = quantiles(
        (fmean(generator.choices(values, k=len(values))) for _ in range(DRAWS)), n=40, method="inclusive"
    )
    return points[0], points[-1]


def as_text(saving: Saving) -> str:
    """`34 % (28 % to 40 %)`, `at least 87 %`; `undecided` where some seeds save more and some less than can be told."""
    if saving.mean is None:
        return "undecided"
    interval = "" if saving.low is None or saving.high is None else f" ({saving.low:.0%} to {saving.high:.0%})"
    return f"{WORDS[saving.bound]}{saving.mean:.0%}{interval}".replace("%", " %")


def by_seed_as_text(saving: Saving) -> str:
    """Each seed's, in their order: `31 %, at least 87 %`."""
    return ", ".join(f"{WORDS[one.bound]}{one.saving:.0%}" for one in saving.seeds).replace("%", " %")
