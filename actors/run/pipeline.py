"""A run from the teacher's text to the student: the table's stages, one after the other.

Every stage is idempotent: it is skipped when its marker stands, so that resuming is running again.
"""

from __future__ import annotations

from typing import Any

from actors.run.context import Context
from actors.run.stage_runner import run_once, why_it_ends
from actors.telemetry.event_types import AlignmentFinished, RoutesOpen, RunFinished, RunStarted
from proxykd.report.model_card import write_cards
from proxykd.report.run_report import write_report
from proxykd.stages import table
from proxykd.stages.align import ALIGN
from proxykd.stages.models import MODELS
from proxykd.stages.stage import Stage


class Pipeline:
    """One run. `execute` is the method of docs/design.md, The method, from top to bottom."""

    def __init__(self, context: Context):
        self._context = context
        self.stop_reason = "no proxy to align"
        """Why the alignment ended."""

    def execute(self) -> None:
        """Does every stage of the config that is not done yet, and writes the report."""
        context = self._context
        context.events.emit(RunStarted(context.run.id, context.journal.epoch))
        for stage in table.stages_of(context.config):
            self.do(stage)
            if stage is MODELS and (url := context.facilities.routes.open(context.run, context.config)) is not None:
                context.events.emit(RoutesOpen(url))
        write_cards(context.run, write_report(context.run, self.stop_reason))
        context.facilities.deployer.write_page(context.run)
        context.journal.append("RUN_FINISHED", adapter=context.aligned_adapter())
        context.events.emit(RunFinished(str(context.run.report)))

    def do(self, stage: Stage[Any]) -> None:
        """The stage, round by round where it has rounds."""
        if stage.rounds is None:
            run_once(self._context, stage)
            return
        rounds = 0
        while (reason := why_it_ends(self._context, stage, rounds)) is None:
            rounds += 1
            run_once(self._context, stage, rounds)
        if stage is ALIGN:
            self._aligned(reason)

    def _aligned(self, reason: str) -> None:
        self.stop_reason = reason
        self._context.events.emit(AlignmentFinished(str(self._context.aligned_adapter()), reason))
