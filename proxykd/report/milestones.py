"""What a finished stage has to say in numbers, each with where it stands on its own axis: for trackers and metrics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Facts = dict[str, Any]
Milestone = tuple[str, int, float]
"""A name, its round (or step, for the student's curve), and the value."""

FIDELITY = ("held_out_nll", "top1_agreement")
ROUND = (
    "nll_loss", "dpo_loss", "dpo_accuracy", "margin_mean", "dpo_accuracy_after", "margin_mean_after", "parity_mean_abs",
    "pairs", "truncated",
)  # fmt: skip


def milestones(stage: str, round_number: int | None, marker: Facts) -> list[Milestone]:
    """`marker` is the stage's cost and result, as its file in stages/ holds them."""
    result, at = marker["result"], round_number or 0
    found = [(f"cost/{stage}_seconds", at, float(marker["seconds"]))]
    if marker.get("tokens"):
        found.append((f"cost/{stage}_tokens", at, float(marker["tokens"])))
    if "validation" in result:
        found += _fidelity("proxy", at, result["validation"])
    found += [(f"round/{key}", at, float(result[key])) for key in ROUND if stage == "align" and key in result]
    for point in result.get("curve", ()):
        found += _fidelity("student", point["step"], point)
    for name, facts in result.get("models", {}).items():
        found += _fidelity(f"test/{name}", 0, facts["fidelity"])
        if "true_kl" in facts:
            found.append((f"test/{name}/true_kl", 0, facts["true_kl"]["kl"]))
    return found


def _fidelity(name: str, at: int, measured: Facts) -> Iterator[Milestone]:
    return ((f"{name}/{key}", at, float(measured[key])) for key in FIDELITY)
