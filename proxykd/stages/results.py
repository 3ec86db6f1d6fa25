"""The results of a run's finished stages, each by its type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from proxykd.errors import RunError
from proxykd.runs.run_directory import RunDirectory
from proxykd.stages.stage import Finished, R, Stage
from proxykd.stages.table import finished_stages


class Results:
    """What has finished, in the order in which it began."""

    def __init__(self, stages: Sequence[Finished[Any]]):
        self.stages = list(stages)
        self._by_key = {stage.key: stage.result for stage in stages}

    @classmethod
    def read(cls, run: RunDirectory) -> Results:
        """Raises:
        IntegrityError: another version of the code wrote a marker.
        """
        return cls(finished_stages(run))

    def of(self, stage: Stage[R]) -> R | None:
        """The result of a stage that is done once, or None where it has not finished."""
        result: R | None = self._by_key.get(stage.name)
        return result

    def need(self, stage: Stage[R]) -> R:
        """The result of a stage that is done once and must have finished.

        Raises:
            RunError: it has not.
        """
        if (result := self.of(stage)) is None:
            raise RunError(f"the stage {stage.name} has not finished")
        return result

    def rounds(self, stage: Stage[R]) -> list[R]:
        """The results of a stage's rounds."""
        return [done.result for done in self.stages if done.stage == stage.name and done.round is not None]
