"""Stages' results and markers with plain numbers, built from their types."""

from __future__ import annotations

from typing import Any

from proxykd.evaluation.measures import Fidelity, Histogram, MassShares, MeanKl, ValidationChange
from proxykd.runs.run_directory import RunDirectory
from proxykd.stages.align import RoundResult
from proxykd.stages.distil import DistilResult
from proxykd.stages.evaluate import EvaluationResult, ModelScores
from proxykd.stages.score import LabelsResult
from proxykd.stages.stage import Finished, R, Stage
from proxykd.stages.trained import CurvePoint
from proxykd.stages.warmup import WarmupResult


def finished(stage: Stage[R], result: R, number: int | None = None, **facts: Any) -> Finished[R]:
    """The marker of a stage that took 10 s on two devices."""
    cost = {"seconds": 10.0, "busy_seconds": 8.0, "started_at": 0.0, "attempts": 1, "devices": 2}
    cost |= {"records": 0, "tokens": 0, **facts}
    return Finished[stage.result](stage=stage.name, round=number, result=result, **cost)  # type: ignore[name-defined]


def finish(run: RunDirectory, stage: Stage[R], result: R, number: int | None = None) -> None:
    """Leaves the marker of a stage, without its files."""
    stage.write(run, finished(stage, result, number))


def fidelity(nll: float) -> Fidelity:
    return Fidelity(
        held_out_nll=nll, stderr=0.1, top1_agreement=0.4, sequence_agreement=0.0, records=5, prompts=5, tokens=60
    )


def warmed_up(adapter: str, **facts: Any) -> WarmupResult:
    """A warm-up that took the NLL from 4.0 to 3.6."""
    result = WarmupResult(adapter=adapter, base=fidelity(4.0), validation=fidelity(3.6), nll_loss=3.5, **learned(3.6))
    return result.model_copy(update=facts)


def adapter_of(number: int) -> str:
    return f"r{number:02d}-aaaaaaaa" if number else "warmup-aaaaaaaa"


def aligned(number: int, adapter: str, **facts: Any) -> RoundResult:
    """A round that took 0.05 nats a token off, and was promoted."""
    nll = 3.6 - 0.05 * number
    result = RoundResult(
        round=number,
        reference_adapter=adapter_of(number - 1),
        adapter=adapter,
        pairs=12,
        dropped={"equal": 1},
        samples=13,
        truncated=2,
        decision="promote",
        reason=f"validation NLL {nll + 0.05:.2f} -> {nll:.2f}",
        validation=fidelity(nll),
        validation_change=ValidationChange(nll=-0.05, stderr=0.01, prompts=5),
        nll_loss=nll,
        dpo_loss=0.6,
        nll_grad_norm=1.0,
        dpo_grad_norm=1.0,
        dpo_accuracy=0.5,
        margin_mean=0.2,
        dpo_accuracy_after=0.75,
        margin_mean_after=0.4,
        pairs_after=12,
        step0_margin_max_abs=0.0,
        parity_mean_abs=1e-5,
        parity_max_abs=2e-5,
        seconds={"sample": 1.0, "train": 2.0},
        learning_rate=1e-3,
        **learned(nll),
    )
    return result.model_copy(update=facts)


def learned(nll: float) -> dict[str, Any]:
    """What every trained result has: here of one step, whose curve is its end."""
    point = CurvePoint(**fidelity(nll).model_dump() | {"step": 1, "records": 8})
    return {"steps": [], "curve": [point], "kept": 1, "records": 8}


def labels(adapter: str, mu: float = -4.0, gamma: float = 2.0, reduction: str = "sequence_sum") -> LabelsResult:
    """Labels of one token, half trusted."""
    histogram = Histogram(edges=[0.0, 0.5, 1.0], counts=[0, 1])
    sizes = {
        "k": 4,
        "tokens": 1,
        "bytes_per_token": 20.0,
        "mass_at_k": {"1": 0.2},
        "text_probability": 0.3,
        "segments": 0,
    }
    return LabelsResult(adapter=adapter, reduction=reduction, mu=mu, gamma=gamma, histogram=histogram, **sizes)


def distilled(**facts: Any) -> DistilResult:
    """A student that took the NLL from 5.0 to 4.6 in 8 steps."""
    curve = [CurvePoint(**fidelity(5.0 - 0.2 * i).model_dump() | {"step": 4 * i, "records": 16 * i}) for i in range(3)]
    shares = {"loss_share": {"nll": 0.9, "kl": 0.1}, "grad_share": {"nll": 0.7, "kl": 0.3}}
    return DistilResult(**shares, **learned(4.6) | {"curve": curve, "kept": 8, "records": 32}).model_copy(update=facts)


def scores(nll: float = 4.0, kl: float | None = None) -> ModelScores:
    """A model on a test slice of one record."""
    true_kl = None if kl is None else MeanKl(kl=kl, stderr=0.01, tokens=60)
    return ModelScores(fidelity=fidelity(nll), sequence_logps=[-8.0], tokens=[2], true_kl=true_kl)


def evaluated(models: dict[str, ModelScores], **facts: Any) -> EvaluationResult:
    """The test slice under these models."""
    shares = MassShares(k=list(range(1, 51)), share=[k / 60 for k in range(1, 51)])
    return EvaluationResult(
        models=models, share_mass_over_095=shares, spearman_vs_true_kl=-0.4, student_less_sft=None
    ).model_copy(update=facts)
