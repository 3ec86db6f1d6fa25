"""The teacher's text in the tokens of a student that keeps its own tokenizer, and where its labels go there."""

from __future__ import annotations

from proxykd.config import USES, RunConfig
from proxykd.stages.stage import Result, Stage


class KindShare(Result):
    """Of the labels' mass on one kind of the proxy's tokens, at tokens that are one to one."""

    share: float
    """Of all such mass."""
    mapped: float
    """The share of it that has an image in the student's vocabulary."""


class RetokeniseResult(Result):
    records: int
    dropped: dict[str, int]
    """Records that the student does not learn from, by reason."""
    truncated: int
    tokens: int
    """The student's, of completions."""
    proxy_tokens: int
    """The proxy's, of the same ones."""
    one_to_one: float
    """The share of the student's tokens that stand for the same bytes as one of the proxy's."""
    in_chunks: float
    """That of tokens in spans of several; the rest has no counterpart."""
    mass: dict[str, KindShare] | None
    """By kind of token; None where the student learns from no labels."""

    @property
    def mapped(self) -> float | None:
        """The share of the labels' mass at tokens that are one to one that has an image."""
        return None if self.mass is None else sum(kind.share * kind.mapped for kind in self.mass.values())

    def headline(self) -> dict[str, float]:
        found = {"records": float(self.records), "one_to_one": round(self.one_to_one, 4)}
        return found if self.mapped is None else found | {"mapped": round(self.mapped, 4)}


def held_out_and_learned(config: RunConfig) -> list[str]:
    """The slices that the student's stages read."""
    learned = USES if config.sft is not None else ("distillation",)
    return ["validation", "test", *config.corpus.slices_for(*learned)]


ROWS = "with the whole conversation"
"""What rows hold, in the stage's key: a run does not take over those of a version that wrote others."""


def _settings(config: RunConfig) -> list[object]:
    student = config.student
    return [student.source, student.chat_template, student.template_date, config.sft is not None, ROWS]


RETOKENISE = Stage(
    "retokenise",
    "actors.run.retokenising:retokenise",
    RetokeniseResult,
    when=lambda config: config.student.tokenizer == "own",
    inputs=("corpus", "score"),
    settings=_settings,
    files=lambda run, _: [run.retokenised],
)
