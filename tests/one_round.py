"""An alignment round by itself, on this process' rank, which can be killed at any step."""

from __future__ import annotations

from unittest import mock

from proxykd.data.corpus_store import read_slice
from proxykd.data.pairs import read_pairs, write_pairs
from proxykd.runs.checkpoints import Checkpoints
from proxykd.runs.run_directory import RunDirectory
from proxykd.training.loops.align import Parity, RoundTask, align
from proxykd.training.trainer import Trainer
from tests.small_run import make_adapter
from tests.stage_ranks import Ranks, make_run

ALIGNMENT = {"learning_rate": 1e-2, "global_batch": 8, "parity_threshold": 100.0, "max_new_tokens": 12}


class Killed(Exception):
    pass


class Round:
    """Three steps from a random adapter; in bfloat16, where what a row lies with decides its log-prob's digits."""

    def __init__(self, tiny, folder, dtype="bfloat16", **resources):
        proxy = {"source": str(tiny), "dtype": dtype, "drop_layers": [3]}
        self.run = make_run(
            tiny, folder, proxy=proxy, alignment=ALIGNMENT, resources={"checkpoint_seconds": 0.0, **resources}
        )
        rows = read_slice(self.run, "alignment")
        for row in rows:
            row |= {
                "rejected_ids": [20, *row["completion_ids"][:3], 2],
                "rejected_stopped": True,
                "adapter": "a",
                "seed": 0,
            }
        path = self.run.pairs(1) / "shard-00000.parquet"
        write_pairs(path, rows, self.run.config().alignment)
        self.pairs, self.reference = read_pairs(path), make_adapter(self.run, 0)

    def train(self, micro_batch_tokens, steps=None):
        """The round's result; killed before step `steps`, counted from 0."""
        config = self.run.config()
        resources = config.resources.model_copy(update={"micro_batch_tokens": micro_batch_tokens, "trainer_threads": 1})
        RunDirectory.create(config.model_copy(update={"resources": resources}))
        [one, *_] = self.pairs
        parity = Parity([one["prompt_ids"]], [one["completion_ids"]], [-1.0] * len(one["completion_ids"]))
        step = Trainer.step

        def mortal(trainer, *arguments):
            if trainer.steps == steps:
                raise Killed
            return step(trainer, *arguments)

        with mock.patch.object(Trainer, "step", mortal):
            task = RoundTask(1, self.reference, len(self.pairs), 1e-2, parity)
            return Ranks(str(self.run.root))("align-01", align, task, self.pairs)

    @property
    def notes(self):
        return Checkpoints(self.run.checkpoints / "align-01").latest()["notes"]

    @property
    def references(self):
        return self.notes["references"]
