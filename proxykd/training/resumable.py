"""One training stage's steps on this worker, resumed from the stage's last checkpoint, for as long as its validation
curve says."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from proxykd.config import TrainConfig
from proxykd.errors import RunStoppedError
from proxykd.evaluation.fidelity import RecordScores
from proxykd.models.scorer import CompletionScorer
from proxykd.runs.checkpoints import Checkpoints
from proxykd.stages.trained import CurvePoint
from proxykd.text.corpus import Row
from proxykd.training.behind_writer import BehindWriter
from proxykd.training.epochs import Epochs
from proxykd.training.trainer import Step, Trainer
from proxykd.training.worker import Worker

LOOK_S = 1.0
"""Between looks whether the run is asked to stop."""


def _nothing(_: CurvePoint) -> None:
    """What most stages do at a point of their curve."""


class ResumableTraining:
    """Steps over the streamed data set, each batch once, whatever dies in between; and the stage's validation curve,
    at whose best point the model stands in the end.

    `notes` is what the stage itself has to remember across a death; plain values, the same on every worker.
    """

    def __init__(
        self,
        worker: Worker,
        scorer: CompletionScorer,
        config: TrainConfig,
        records: int,
        student: bool = False,
        start_counts: bool = False,
        ended: Callable[[list[Step]], bool] = lambda _: False,
    ):
        """`records` are those of one epoch; a `student` is validated in its own tokens. Where the start counts, it is
        the result where no later point is better. `ended`, asked after each step, says whether the steps so far end the
        stage."""
        if config.gradient_checkpointing:
            scorer.checkpoint_layers()
        resources = worker.config.resources
        if resources.torch_compile:
            scorer.compile_layers()
        self._worker = worker
        self._config = config
        self._student = student
        self._start_counts = start_counts
        self._ended = ended
        self.records = records
        self._epochs = Epochs(worker.stream, records, config.global_batch, worker.config.seed)
        self.trainer = Trainer(scorer, config, worker.workers, resources.micro_batch_tokens, self.total_steps)
        folder = worker.run.checkpoints / worker.key
        self._checkpoints, self._best = Checkpoints(folder), Checkpoints(folder, "best")
        self._writer = BehindWriter(worker.workers.device.type != "cpu")
        self._every_s = resources.checkpoint_seconds
        self._saved = self._looked = time.monotonic()
        self.steps: list[Step] = []
        self.curve: list[CurvePoint] = []
        self.notes: dict[str, Any] = {}
        self.seconds = 0.0
        """Spent on steps, over all attempts."""
        self.validation_seconds = 0.0
        """Spent on the curve's points."""
        self._scores: tuple[int, RecordScores] | None = None
        """The validation slice, record by record, after so many steps."""
        self._checkpoint: dict[str, Any] | None = None
        """The trainer's state that is still to be taken up; until then the model is as the stage began with it."""
        if (state := self._checkpoints.latest()) is not None:
            self._checkpoint = state["trainer"]
            self.steps = [Step(**step) for step in state["steps"]]
            self.curve = [CurvePoint.model_validate(point) for point in state["curve"]]
            self.notes = state["notes"]
            self.seconds, self.validation_seconds = state["seconds"], state["validation_seconds"]
        self._require_alike()

    def begin_curve(self) -> None:
        """The point before the first step, of a stage whose model nobody has validated yet."""
        if not self.curve:
            self._point()
            if self._counting and self._is_best and (weights := self.trainer.weights()) is not None:
                self._best.save(0, {"parameters": weights})

    def run(self, step: Callable[[list[Row]], Step], at_point: Callable[[CurvePoint], None] = _nothing) -> list[Step]:
        """Takes the steps that are still to be taken and returns all of them. `at_point` sees every point of the
        curve, with the model as it is there.

        Raises:
            RunStoppedError: somebody asked the run to stop; what was done is saved.
        """
        self._take_up()
        total = self.total_steps
        self._worker.progress(len(self.steps), total, "steps")
        began = time.monotonic() - self.seconds - self.validation_seconds
        for rows in self._batches(after=len(self.steps)) if not self._over else ():
            self.steps.append(step(rows))
            self.seconds = time.monotonic() - began - self.validation_seconds
            self._worker.progress(len(self.steps), total, "steps", **self.steps[-1].measures)
            better = False
            if self._point_is_due:
                at_point(self._point())
                better = self.kept == len(self.steps)
            due, stop = self._agree()
            if due or stop or better or self._over:
                self.save(best=better and self._is_best)
            if stop:
                self._writer.finish()
                raise RunStoppedError("stopped, as asked")
            if self._over:
                break
        self._writer.finish()
        self._stand_at_kept()
        return self.steps

    def validation(self) -> RecordScores:
        """The validation slice under the model as it now is. Every worker must call it."""
        if self._scores is None or self._scores[0] != self.kept:
            self._scores = self.kept, self._validate()
        return self._scores[1]

    def facts(self) -> dict[str, Any]:
        """What every result of training has (stages/trained.py)."""
        return {
            "steps": [step.facts() for step in self.steps],
            "curve": self.curve,
            "kept": self.kept,
            "records": self.records_seen,
        }

    @property
    def kept(self) -> int:
        """The step of the curve whose weights count: the best by validation NLL, or the last."""
        if self._config.keep == "best":
            return min(self._counting, key=lambda point: point.held_out_nll).step
        return self._counting[-1].step

    @property
    def total_steps(self) -> int:
        return self._config.epochs * self._steps_an_epoch

    @property
    def records_seen(self) -> int:
        epochs, steps = divmod(len(self.steps), self._steps_an_epoch)
        return epochs * self.records + min(self.records, steps * self._config.global_batch)

    def first_epoch(self) -> Iterator[list[Row]]:
        """The batches of one epoch, without a step."""
        return self._epochs.batches(0)

    def save(self, best: bool = False) -> None:
        """Every worker must call it; rank 0 gathers and writes, while the steps go on where what it gathered is a copy.
        `best` keeps the weights as those of the best point too."""
        self._take_up()
        self._writer.finish()
        if (trained := self.trainer.state()) is not None:
            state = {
                "trainer": trained,
                "steps": [asdict(step) for step in self.steps],
                "curve": [point.model_dump() for point in self.curve],
                "notes": dict(self.notes),
                "seconds": self.seconds,
                "validation_seconds": self.validation_seconds,
            }
            self._writer.write(partial(self._write, len(self.steps), state, best, self.kept if self._counting else 0))
        self._saved = time.monotonic()

    def _write(self, step: int, state: dict[str, Any], best: bool, kept: int) -> None:
        if best:
            self._best.save(step, {"parameters": state["trainer"]["parameters"]})
        self._checkpoints.save(step, state)
        self._checkpoints.forget(before=step)
        self._best.forget(before=kept)

    def _take_up(self) -> None:
        if self._checkpoint is not None:
            self.trainer.restore(self._checkpoint)
            self._checkpoint = None

    @property
    def _over(self) -> bool:
        if len(self.steps) == self.total_steps or self._ended(self.steps):
            return True
        patience, points = self._config.early_stopping, [point.held_out_nll for point in self._counting]
        return patience is not None and len(points) > patience and min(points[:-patience]) <= min(points[-patience:])

    @property
    def _point_is_due(self) -> bool:
        every = -(-self.total_steps // self._config.evaluations)
        return len(self.steps) % every == 0 or len(self.steps) == self.total_steps or self._ended(self.steps)

    @property
    def _counting(self) -> list[CurvePoint]:
        """The points of the curve that may be the stage's result."""
        return [point for point in self.curve if point.step or self._start_counts]

    @property
    def _is_best(self) -> bool:
        """Whether the weights are the best so far, and others may follow."""
        return self._config.keep == "best" and self.kept == len(self.steps) < self.total_steps

    def _point(self) -> CurvePoint:
        scores, step = self._validate(), len(self.steps)
        point = CurvePoint(**dict(scores.fidelity()) | {"step": step, "records": self.records_seen})
        self.curve.append(point)
        if self._counting and self.kept == step:
            self._scores = step, scores
        return point

    def _validate(self) -> RecordScores:
        began = time.monotonic()
        scores = self._worker.validate(self.trainer.scorer, self._student)
        self.validation_seconds += time.monotonic() - began
        return scores

    def _stand_at_kept(self) -> None:
        """The model at the point that counts."""
        if self.kept != len(self.steps):
            self._worker.workers.any(False)  # all wait for the one that wrote them
            self.trainer.take_weights(self._best.at(self.kept)["parameters"])

    def _require_alike(self) -> None:
        """Workers that went on from different checkpoints would wait for each other for ever.

        A file system may show one of them a checkpoint later than the others.
        """
        steps = self._worker.workers.gather_objects((self._checkpoint is not None, len(self.steps)))
        if len(set(steps)) > 1:
            raise RuntimeError(f"the workers found checkpoints of different steps: {[step for _, step in steps]}")

    @property
    def _steps_an_epoch(self) -> int:
        return -(-self.records // self._config.global_batch)

    def _agree(self) -> tuple[bool, bool]:
        """Whether it is time for a checkpoint, and whether to stop: as soon as one worker says so, for all."""
        now = time.monotonic()
        due, stop = now - self._saved >= self._every_s, False
        if now - self._looked >= LOOK_S:
            self._looked = now
            stop = self._worker.run.stop_request.exists()
        mine = torch.tensor([float(due), float(stop)], device=self._worker.workers.device)
        due, stop = (bool(value > 0) for value in self._worker.workers.max(mine))
        return due, stop

    def _batches(self, after: int) -> Iterator[list[Row]]:
        """Global batches, one epoch after the other, each complete, without the first `after`."""
        epochs, skip = divmod(after, self._steps_an_epoch)
        for epoch in range(epochs, self._config.epochs):
            yield from self._epochs.batches(epoch, skip)
            skip = 0
