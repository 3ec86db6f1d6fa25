"""What a run came to, for whoever reads one line: its student before and after, beside SFT on the same text.

By the true KL where the teacher's seal was opened, else by the NLL of its held-out text. ± is a standard error.
"""

from __future__ import annotations

from typing import Literal

from proxykd.evaluation.measures import Difference
from proxykd.evaluation.standard_errors import student_t
from proxykd.runs.json_model import JsonModel
from proxykd.stages.evaluate import STUDENT_AFTER, STUDENT_BEFORE, STUDENT_SFT, EvaluationResult, ModelScores

SURE = 0.975
"""Of a two-sided interval of 95 %, by Student's t: what lies within it is called undecided."""
MEASURES = {
    "true_kl": ("true KL", "The student's true KL from the teacher"),
    "held_out_nll": ("NLL", "The NLL that the student gives the teacher's held-out text"),
}


class Estimate(JsonModel):
    """A mean on the test slice, nats a token."""

    value: float
    stderr: float | None

    def told(self, digits: int = 3) -> str:
        """Returns `0.900 ± 0.025`."""
        return minus(f"{self.value:.{digits}f}") + self._error(digits)

    def told_as_change(self, digits: int = 4) -> str:
        """Returns `−0.0087 ± 0.0031`, with its sign."""
        return minus(f"{self.value:+.{digits}f}") + self._error(digits)

    def _error(self, digits: int) -> str:
        return "" if self.stderr is None else f" ± {self.stderr:.{digits}f}"


class Outcome(JsonModel):
    """One sentence and the numbers of one figure."""

    measure: Literal["true_kl", "held_out_nll"]
    before: Estimate
    after: Estimate
    sft: Estimate | None
    """A student by SFT on the same text, where the run has one."""
    less_sft: Estimate | None
    """The student less that one, paired by record; below 0 where it is closer to the teacher."""
    sentence: str
    short: str
    """For a column of a list."""


def outcome(evaluated: EvaluationResult) -> Outcome:
    """What the evaluation found of the student."""
    models, less = evaluated.models, evaluated.student_less_sft
    by_kl = models[STUDENT_AFTER].true_kl is not None
    before, after = _estimate(models[STUDENT_BEFORE], by_kl), _estimate(models[STUDENT_AFTER], by_kl)
    sft = _estimate(models[STUDENT_SFT], by_kl) if less else None
    paired = _paired(less, by_kl) if less else None
    measure: Literal["true_kl", "held_out_nll"] = "true_kl" if by_kl else "held_out_nll"
    name, subject = MEASURES[measure]
    sentence = f"{subject} {_moved(before, after)} nats a token."
    short = f"{name} {before.told().partition(' ')[0]} → {after.told()}"
    if less and sft and paired:
        sentence += f" SFT on the same text gives {sft.told()}: {_verdict(paired, less.prompts)}."
        short += f"; {paired.told_as_change()} to SFT"
    return Outcome(
        measure=measure, before=before, after=after, sft=sft, less_sft=paired, sentence=sentence, short=short
    )


def minus(number: str) -> str:
    """Returns a formatted number with the one minus sign that people read, U+2212."""
    return number.replace("-", "\N{MINUS SIGN}")


def _estimate(scores: ModelScores, by_kl: bool) -> Estimate:
    if by_kl:
        assert scores.true_kl is not None
        return Estimate(value=scores.true_kl.kl, stderr=scores.true_kl.stderr)
    return Estimate(value=scores.fidelity.held_out_nll, stderr=scores.fidelity.stderr)


def _paired(less: Difference, by_kl: bool) -> Estimate:
    if by_kl and less.true_kl is not None:
        return Estimate(value=less.true_kl, stderr=less.true_kl_stderr)
    return Estimate(value=less.nll, stderr=less.nll_stderr)


def _moved(before: Estimate, after: Estimate) -> str:
    if before.told() == after.told():
        return f"stayed at {after.told()}"
    return f"{'fell' if after.value < before.value else 'rose'} from {before.told()} to {after.told()}"


def _verdict(paired: Estimate, prompts: int) -> str:
    """Whether the student or SFT is closer, as far as so many prompts tell."""
    told = f"{paired.told_as_change()} compared record by record"
    if paired.stderr is None:
        return f"{told}, of unknown error"
    if abs(paired.value) <= student_t(SURE, prompts - 1) * paired.stderr:
        return f"{told}, no difference beyond its error"
    return f"{told}, so this student is {'closer' if paired.value < 0 else 'farther'}"
