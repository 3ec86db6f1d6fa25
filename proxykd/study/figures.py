"""A study's figures, from its report alone. Matplotlib, without a display."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from proxykd.evaluation.measures import Fidelity
from proxykd.stages.trained import CurvePoint
from proxykd.study.comparison import MEASURES, QUALITIES
from proxykd.study.study_model import ArmReport, StudyReport

REFERENCE = "#c2410c"
COLOURS = ("#1d4ed8", "#047857", "#7c3aed", "#b45309", "#0e7490", "#be185d", "#4d7c0f", "#475569", "#a16207", "#6d28d9")
DASHES = ("-", "--", ":", "-.")
GREY = "#64748b"
QUALITY_TITLES = {
    "true_kl": "true KL from the teacher (nats a token)",
    "held_out_nll": "NLL of the teacher's text (nats a token)",
}
Panel = tuple[str, Callable[[Fidelity], float]]
NLL: Panel = ("NLL (nats a token)", lambda measured: measured.held_out_nll)
TOP1: Panel = ("top-1 agreement", lambda measured: measured.top1_agreement)
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "grid.color": "#e2e8f0",
    "svg.fonttype": "none",
    "svg.hashsalt": "proxykd",
}


def figures(report: StudyReport) -> dict[str, Figure]:
    """Every figure that the study's arms have the numbers for, by file name."""
    with rc_context(STYLE):
        made = {
            "arms": arms_compared(report),
            "sizes": quality_by_records(report),
            "curves": student_curves(report),
            "accuracy": accuracy_curves(report),
            "alignment": alignment(report),
            "mass": mass_shares(report),
            "proxy-and-student": proxy_and_student(report),
            "trust": trust_calibration(report),
        }
    return {name: figure for name, figure in made.items() if figure is not None}


def as_svg(figure: Figure) -> str:
    text = io.StringIO()
    with rc_context(STYLE):
        figure.savefig(text, format="svg", bbox_inches="tight", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def as_png(figure: Figure) -> bytes:
    data = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(data, format="png", dpi=160, bbox_inches="tight")
    return data.getvalue()


def arms_compared(report: StudyReport) -> Figure:
    """Every arm's student on the test slice: mean over seeds, 95 % interval, each seed a tick."""
    measures = [key for key in QUALITIES if report.table[0][key] is not None]
    rows = report.table[::-1]
    figure = Figure(figsize=(4.6 * len(measures), 0.32 * len(rows) + 0.9))
    for number, key in enumerate(measures):
        axes = figure.add_subplot(1, len(measures), number + 1)
        for y, row in enumerate(rows):
            colour = REFERENCE if row["arm"] == report.study.reference else COLOURS[0]
            axes.errorbar(row[key], y, xerr=row[f"{key}_ci"], fmt="o", color=colour, markersize=5, capsize=2)
            found = (_measured(arm, key) for arm in report.at_full_size if arm.name == row["arm"])
            seeds = [value for value in found if value is not None]
            axes.plot(seeds, [y] * len(seeds), "|", color=GREY, markersize=8, alpha=0.8)
        axes.set_yticks(range(len(rows)), [row["title"] for row in rows] if number == 0 else [""] * len(rows))
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_xlabel(QUALITY_TITLES[key])
    figure.tight_layout()
    return figure


def quality_by_records(report: StudyReport) -> Figure | None:
    """What fewer training records give: each sized arm's mean over seeds with its 95 % interval, over a log axis;
    dotted, the reference with all of them."""
    measures = [key for key in QUALITIES if any(row[key] is not None for row in report.sizes)]
    if not measures:
        return None
    names = dict.fromkeys(row["arm"] for row in report.sizes)
    full = next((row for row in report.table if row["arm"] == report.study.reference), None)
    figure = Figure(figsize=(4.6 * len(measures), 3.6))
    for number, key in enumerate(measures):
        axes = figure.add_subplot(1, len(measures), number + 1)
        for index, name in enumerate(names):
            rows = [row for row in report.sizes if row["arm"] == name]
            records, values = [row["records"] for row in rows], [row[key] for row in rows]
            intervals = [row[f"{key}_ci"] or 0.0 for row in rows]
            look = _look(index, name == report.study.reference)
            axes.errorbar(records, values, intervals, marker="o", ms=3.5, capsize=2.5, **look, label=rows[0]["title"])
        if full is not None:
            axes.axhline(full[key], color=REFERENCE, lw=0.8, ls=":")
        axes.set_xscale("log")
        ticks = sorted({row["records"] for row in report.sizes})
        axes.set_xticks(ticks, [f"{tick:.0f}" for tick in ticks])
        axes.set_xticks([], minor=True)
        axes.set(xlabel="training records", ylabel=QUALITY_TITLES[key])
    _legend_beside(figure)
    figure.tight_layout()
    return figure


def student_curves(report: StudyReport) -> Figure | None:
    """Figures 3 and 7: the student's fidelity on the validation slice while it trains, mean over seeds."""
    curves = {row["title"]: _by_point(report, row["arm"]) for row in report.table}
    curves = {title: curve for title, curve in curves.items() if len(curve) > 1}
    if not curves:
        return None
    figure = Figure(figsize=(9.2, 3.6))
    for number, (label, measure) in enumerate((NLL, TOP1)):
        axes = figure.add_subplot(1, 2, number + 1)
        for index, (title, curve) in enumerate(curves.items()):
            steps, values = _means(curve, lambda point: point.step), _means(curve, measure)
            axes.plot(steps, values, **_look(index, title == report.reference_title), label=title)
        axes.set(xlabel="step", ylabel=label)
    _legend_beside(figure)
    figure.tight_layout()
    return figure


def accuracy_curves(report: StudyReport) -> Figure | None:
    """Figure 3: the student's average benchmark score at each snapshot, mean over seeds."""
    curves = {row["title"]: _accuracy(report, row["arm"]) for row in report.table}
    curves = {title: points for title, points in curves.items() if len(points) > 1}
    if not curves:
        return None
    figure = Figure(figsize=(5.4, 3.4))
    axes = figure.add_subplot()
    for index, (title, points) in enumerate(curves.items()):
        look = _look(index, title == report.reference_title)
        axes.plot(list(points), list(points.values()), marker="o", ms=3.5, **look, label=title)
    axes.set(xlabel="step", ylabel="average score")
    _legend_beside(figure)
    figure.tight_layout()
    return figure


def alignment(report: StudyReport) -> Figure | None:
    """Figure 6: the proxy's fidelity from the base through the warm-up and every round (validation slice)."""
    arms = [arm for arm in report.at_full_size if arm.alignment]
    names = [row for row in report.table if any(arm.name == row["arm"] for arm in arms)]
    shown: dict[str, tuple[str, list[list[Fidelity]]]] = {}
    for row in names:
        points = [arm.alignment for arm in arms if arm.name == row["arm"]]
        shown.setdefault(str(points), (row["title"], points))
    if not shown:
        return None
    figure = Figure(figsize=(9.2, 3.2))
    for number, (label, measure) in enumerate((TOP1, NLL)):
        axes = figure.add_subplot(1, 2, number + 1)
        for index, (title, seeds) in enumerate(shown.values()):
            rounds = min(map(len, seeds))
            means = [fmean(measure(seed[i]) for seed in seeds) for i in range(rounds)]
            look = _look(index, title == report.reference_title)
            axes.plot(range(rounds), means, marker="o", ms=3.5, **look, label=title)
            axes.set_xticks(range(rounds), ["base", "warm-up", *(str(i) for i in range(1, rounds - 1))][:rounds])
        axes.set(xlabel="round", ylabel=label)
    _legend_beside(figure)
    figure.tight_layout()
    return figure


def mass_shares(report: StudyReport) -> Figure | None:
    """Figure 5: share of tokens whose K most likely tokens hold more than 0.95 of the first proxy's mass."""
    known = [(arm.name, arm.mass) for arm in report.at_full_size if arm.mass]
    if not known:
        return None
    shares = [mass for name, mass in known if name == known[0][0]]
    figure = Figure(figsize=(4.6, 3.0))
    axes = figure.add_subplot()
    axes.plot(shares[0].k, [fmean(values) for values in zip(*(s.share for s in shares), strict=True)], color=COLOURS[0])
    axes.axvline(10, color=GREY, lw=0.8, ls=":")
    axes.set(xlabel="K", ylabel="share of tokens", ylim=(0, 1))
    figure.tight_layout()
    return figure


def proxy_and_student(report: StudyReport) -> Figure | None:
    """Figure 4: the student's quality against its proxy's, with the proxy's size."""
    arms = [arm for arm in report.at_full_size if arm.proxy]
    if not arms:
        return None
    titles = {row["arm"]: row["title"] for row in report.table}
    figure = Figure(figsize=(4.8, 3.4))
    axes = figure.add_subplot()
    for index, name in enumerate(dict.fromkeys(arm.name for arm in arms)):
        seeds = [arm for arm in arms if arm.name == name]
        parameters = seeds[0].parameters["proxy"]
        size = "" if parameters is None else f" ({parameters / 1e6:.3g} M)"
        axes.plot(
            [arm.proxy.held_out_nll for arm in seeds if arm.proxy],
            [arm.student.held_out_nll for arm in seeds],
            "o",
            color=REFERENCE if name == report.study.reference else COLOURS[index % len(COLOURS)],
            markersize=5,
            alpha=0.8,
            label=f"{titles[name]}{size}",
        )
    axes.set(xlabel="proxy: NLL of the teacher's text", ylabel="student: NLL of the teacher's text")
    _legend_beside(figure)
    figure.tight_layout()
    return figure


def trust_calibration(report: StudyReport) -> Figure | None:
    """Does a higher weight mean a proxy closer to the teacher? Each held-out record's weight and true KL, by the first
    arm that has both."""
    known = [(arm, arm.calibration) for arm in report.at_full_size if arm.calibration]
    known = [(arm, one) for arm, one in known if arm.name == known[0][0].name]
    if not known:
        return None
    figure = Figure(figsize=(4.6, 3.2))
    axes: Axes = figure.add_subplot()
    for _, one in known:
        axes.plot(one.weight, one.kl, ".", color=COLOURS[0], alpha=0.35, markersize=4)
    ranks = [rank for arm, _ in known if arm.trust and (rank := arm.trust.spearman_vs_true_kl) is not None]
    if ranks:
        axes.set_title(f"rank correlation {fmean(ranks):+.2f}", fontsize=9, color=GREY)
    axes.set(xlabel="trust weight", ylabel="true KL of the record (nats a token)")
    figure.tight_layout()
    return figure


def _look(index: int, reference: bool) -> dict[str, Any]:
    """How a figure draws its line `index`: the reference stands out, colours come round again with other dashes."""
    if reference:
        return {"color": REFERENCE, "linewidth": 2.2}
    turn, colour = divmod(index, len(COLOURS))
    return {"color": COLOURS[colour], "linestyle": DASHES[turn % len(DASHES)], "linewidth": 1.1}


def _legend_beside(figure: Figure) -> None:
    """One legend for all panels, outside them: studies may have many arms."""
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(), loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False
    )


def _measured(arm: ArmReport, key: str) -> float | None:
    return MEASURES[key][1](arm)


def _accuracy(report: StudyReport, name: str) -> dict[int, float]:
    """By step: the mean over seeds and tasks of the scores of an arm's snapshots."""
    scores: dict[int, list[float]] = {}
    for arm in report.at_full_size:
        for model, tasks in arm.benchmarks.items() if arm.name == name else ():
            if model.startswith("student@"):
                scores.setdefault(int(model.partition("@")[2]), []).append(fmean(s.score for s in tasks.values()))
    return {step: fmean(values) for step, values in sorted(scores.items())}


def _by_point(report: StudyReport, name: str) -> list[tuple[CurvePoint, ...]]:
    """An arm's validation curve: of each point, every seed's."""
    return list(zip(*(arm.curve for arm in report.at_full_size if arm.name == name), strict=False))


def _means(curve: Sequence[tuple[CurvePoint, ...]], measure: Callable[[CurvePoint], float]) -> list[float]:
    """Over seeds, point by point."""
    return [fmean(map(measure, seeds)) for seeds in curve]
