"""A training worker as the stages' loops see it: without a word of who started it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import pyarrow as pa
import torch

from proxykd.config import RunConfig
from proxykd.data.corpus_store import read_slice
from proxykd.data.retokenised import student_slice
from proxykd.errors import RunStoppedError
from proxykd.evaluation.fidelity import RecordScores, score_records
from proxykd.models.loading import load_scorer
from proxykd.models.parallel import Workers
from proxykd.models.scorer import CompletionScorer
from proxykd.runs.run_directory import RunDirectory

Stream = Callable[[int], Iterator[pa.Table]]
"""The stage's rows from the start, in order and complete, in tables of so many."""


class Report(Protocol):
    """Takes progress, from rank 0."""

    def __call__(self, done: float, total: float, unit: str, **metrics: Any) -> None: ...


class Worker:
    """What every loop has: the run, this worker's place among the others, its rows, and the way to report progress."""

    def __init__(self, run: RunDirectory, key: str, device: torch.device, report: Report, stream: Stream):
        """`key` names the stage's checkpoints."""
        self.run, self.key, self.report, self.stream = run, key, report, stream
        self.config: RunConfig = run.config()
        resources = self.config.resources
        share = max(1, len(os.sched_getaffinity(0)) // resources.trainer_workers)
        torch.set_num_threads(resources.trainer_threads or share)
        torch.manual_seed(self.config.seed)
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high")  # TF32, for what is kept in float32
        self.workers = Workers.current(resources.parallel, device)

    @property
    def lead(self) -> bool:
        return self.workers.rank == 0

    def progress(self, done: float, total: float, unit: str, **metrics: Any) -> None:
        if self.lead:
            self.report(done, total, unit, **metrics)

    def go_on(self) -> None:
        """Every worker must call it.

        Raises:
            RunStoppedError: one of them sees that the run is to stop; in all of them.
        """
        if self.workers.any(self.run.stop_request.exists()):
            raise RunStoppedError("stopped, as asked")

    def arithmetic(self) -> dict[str, Any]:
        """What decides a log-prob's last digits beside weights and rows; what is compared must be made alike.

        In bfloat16 what a row lies with in its micro-batch alone moves its sum by up to 0.4 nats.
        """
        device, resources = self.workers.device, self.config.resources
        mine = {
            "micro_batch_tokens": resources.micro_batch_tokens,
            "workers": self.workers.world,
            "parallel": resources.parallel,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "threads": torch.get_num_threads(),
            "layout": "packed",
            "compiled": resources.torch_compile,
            "torch": str(torch.__version__),
        }
        facts: dict[str, Any] = self.workers.of_lead(mine)
        return facts

    def proxy(self, adapter: str | None, trainable: bool = True) -> CompletionScorer:
        directory = self.run.adapters / adapter if adapter else None
        scorer = load_scorer(
            self.run.models / "proxy", self.config.proxy, adapter=directory, seed=self.config.seed, trainable=trainable
        )
        return self.workers.place(scorer)

    def untaught_student(self) -> CompletionScorer:
        """The student as the run starts from it, frozen."""
        frozen = self.config.student.model_copy(update={"method": "full"})
        return self.workers.place(load_scorer(self.run.models / "student", frozen, trainable=False))

    def open_teacher(self) -> CompletionScorer:
        """The white-box baselines' teacher."""
        assert self.config.white_box is not None
        frozen = self.config.white_box.teacher.model_copy(update={"method": "full"})
        return self.workers.place(load_scorer(self.run.models / "white_box", frozen, trainable=False))

    def validate(self, scorer: CompletionScorer, student: bool = False) -> RecordScores:
        """The validation slice, as the proxy reads it or as the student does."""
        rows = (student_slice if student else read_slice)(self.run, "validation")
        return score_records(scorer, rows, self.workers, self.config.resources.micro_batch_tokens)
