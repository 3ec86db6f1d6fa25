"""The test slice, once; where the teacher is local its seal is opened here."""

from __future__ import annotations

from collections.abc import Iterator

from proxykd.config import RunConfig
from proxykd.costs.demands import Demand, ProcessDemands
from proxykd.costs.estimator import Estimator, StageEstimate
from proxykd.evaluation.measures import Difference, Fidelity, MassShares, MeanKl
from proxykd.models.architecture import require_architecture
from proxykd.runs.json_model import JsonModel
from proxykd.stages.stage import Milestone, Result, Stage
from proxykd.stages.trained import fidelity_milestones

STUDENT_BEFORE, STUDENT_OFFLINE, STUDENT_AFTER = "student_before", "student_offline", "student_after"
STUDENT_SFT, OPEN_TEACHER = "student_sft", "white_box"
"""What the evaluation calls these models; proxies go by their adapters, or `base`."""


class ModelScores(JsonModel):
    """One model on the test slice."""

    fidelity: Fidelity
    sequence_logps: list[float]
    """Of each record's completion, in nats."""
    tokens: list[int]
    true_kl: MeanKl | None = None
    """KL(teacher || model) a token, where the teacher is local."""
    record_kls: list[float] | None = None
    teacher_kl: MeanKl | None = None
    """A lower bound, from the teacher's log-probs where they are known."""


class EvaluationResult(Result):
    models: dict[str, ModelScores]
    """By name: `base`, adapters, `student_before`, `student_offline` where an on-policy phase followed,
    `student_after`, `student_sft`, `white_box`."""
    share_mass_over_095: MassShares | None
    spearman_vs_true_kl: float | None
    """Rank correlation of the trust weight with the proxy's true KL, record by record."""
    student_less_sft: Difference | None
    """Where the run has a student by SFT beside its own."""

    def milestones(self) -> Iterator[Milestone]:
        for name, scores in self.models.items():
            yield from fidelity_milestones(f"test/{name}", 0, scores.fidelity)
            if scores.true_kl is not None:
                yield f"test/{name}/true_kl", 0, scores.true_kl.kl


def _settings(config: RunConfig) -> list[object]:
    judged = [config.proxy] if config.teaching.labels or config.teaching.assistant else []
    return [*judged, config.student, config.teacher, config.open_teacher]


def _demands(processes: ProcessDemands) -> list[list[Demand]]:
    config = processes.config
    what = "evaluation" if config.teacher.local else "proxy" if config.teaching.labels else "student"
    return [[processes.trainer(what)]]


def _cost(by: Estimator) -> list[StageEstimate]:
    """Every proxy there is (the base, the warm-up, every round, or the assistant) and every student."""
    teaching = by.config.teaching
    aligned = by.config.alignment.rounds + 1 if teaching.aligned else 0
    proxies = int(teaching.labels or teaching.assistant) + aligned + int(teaching.assistant)
    students = 2 + (by.config.sft is not None) + (by.config.on_policy is not None)
    seconds = proxies * by.forward(by.proxy, by.test) + students * by.forward(by.student, by.test)
    if (teacher := by.config.open_teacher) is not None:
        seconds += by.forward(require_architecture(teacher), by.test)
        proxies += 1
    return [by.trained("evaluate", (proxies + students) * by.test, seconds)]


EVALUATE = Stage(
    "evaluate",
    "actors.run.distillation:evaluate",
    EvaluationResult,
    inputs=("corpus", "align", "score", "assist", "distil", "on_policy", "sft"),
    settings=_settings,
    demands=_demands,
    cost=_cost,
)
