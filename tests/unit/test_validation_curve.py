"""A stage's learning rate over its steps, and its validation curve: the best point is kept, and may end the stage."""

from __future__ import annotations

from math import cos, pi
from unittest import mock

import pytest
import torch

from proxykd.config import TrainConfig
from proxykd.data.corpus_store import read_slice
from proxykd.evaluation.fidelity import RecordScores
from proxykd.runs.checkpoints import Checkpoints
from proxykd.training.loops.warm_up import WarmupTask, warm_up
from proxykd.training.schedules import rate_at
from proxykd.training.trainer import Trainer
from proxykd.training.worker import Worker
from tests.stage_ranks import make_run, worker_of


def rates(steps, **settings):
    return [rate_at(TrainConfig(learning_rate=1.0, **settings), step, steps) for step in range(steps)]


def test_rates_rise_and_fall():
    assert rates(4) == [1.0] * 4
    assert rates(4, schedule="linear") == [1.0, 0.75, 0.5, 0.25]
    assert rates(4, schedule="cosine") == pytest.approx([(1 + cos(pi * i / 4)) / 2 for i in range(4)])
    assert rates(6, schedule="linear", warmup_share=1 / 3) == pytest.approx([1 / 3, 2 / 3, 1.0, 0.75, 0.5, 0.25])
    assert rates(4, warmup_share=0.5) == pytest.approx([1 / 3, 2 / 3, 1.0, 1.0])


def test_the_optimizer_steps_at_the_rate_of_its_step(tiny):
    """With an Adam that is fresh every time a step's size is its rate."""
    from tests.unit.test_training import LOSSES, make, rows

    trainer = make(tiny, 1000, total_steps=4, schedule="linear")
    seen = []
    for number in range(4):
        trainer.step(batch := rows(seed=number), LOSSES["sft"](batch))
        seen.append(trainer.optimizer.param_groups[0]["lr"])
    assert seen == pytest.approx([1e-2, 7.5e-3, 5e-3, 2.5e-3])


class Stage:
    """A warm-up of 8 steps with a point after every other one, whose validation NLLs are given."""

    def __init__(self, tiny, folder, nlls, **settings):
        warmup = {"learning_rate": 1e-2, "global_batch": 4, "epochs": 4, "evaluations": 4, **settings}
        self.run = make_run(tiny, folder, warmup=warmup, resources={"checkpoint_seconds": 0.0})
        self.rows = read_slice(self.run, "distillation")[:8]
        self.nlls, self.weights = nlls, {}

    def train(self, die_at=None):
        def validate(worker, scorer, student):
            weights = [p.detach().clone() for p in scorer.parameters() if p.requires_grad]
            seen = [step for step, others in self.weights.items() if all(map(torch.equal, weights, others))]
            step = seen[0] if seen else len(self.weights) * 2
            self.weights[step] = weights
            return RecordScores([1, 1], [self.nlls[step // 2]] * 2, [0.0, 0.0], ["a", "b"])

        step = Trainer.step

        def mortal(trainer, *arguments):
            if trainer.steps == die_at:
                raise InterruptedError
            return step(trainer, *arguments)

        with mock.patch.object(Worker, "validate", validate), mock.patch.object(Trainer, "step", mortal):
            return warm_up(worker_of(self.run, "warmup", self.rows), WarmupTask(len(self.rows)))

    def saved(self, result):
        """Which point's weights the adapter holds."""
        from safetensors.torch import load_file

        found = load_file(self.run.adapters / result.adapter / "adapter_model.safetensors")
        sizes = {step: sorted(float(w.abs().sum()) for w in weights) for step, weights in self.weights.items()}
        mine = sorted(float(w.abs().sum()) for w in found.values())
        return [step for step, size in sizes.items() if torch.allclose(torch.tensor(size), torch.tensor(mine))]


@pytest.mark.parametrize(
    ("nlls", "settings", "kept", "steps"),
    [
        ([5, 4, 3, 2, 1], {}, 8, 8),
        ([5, 4, 2, 3, 3], {}, 4, 8),
        ([5, 4, 2, 3, 3], {"keep": "last"}, 8, 8),
        ([5, 2, 3, 4, 1], {"early_stopping": 2}, 2, 6),
        ([5, 2, 3, 1, 4], {"early_stopping": 2}, 6, 8),
        ([1, 4, 3, 5, 6], {}, 4, 8),  # the start does not count: the stage is to teach something
    ],
)
def test_the_best_point_of_the_curve_is_kept(tiny, tmp_path, nlls, settings, kept, steps):
    stage = Stage(tiny, tmp_path, nlls, **settings)
    result = stage.train()
    assert (result.kept, len(result.steps), result.records) == (kept, steps, 4 * steps)
    assert stage.saved(result) == [kept]
    assert [point.step for point in result.curve] == list(range(0, steps + 1, 2))
    assert result.validation.held_out_nll == nlls[kept // 2] == result.kept_point.held_out_nll
    assert result.base.held_out_nll == nlls[0]


@pytest.mark.parametrize("die_at", [3, 5, 7])
def test_a_death_loses_no_point_and_not_the_best(tiny, tmp_path, die_at):
    whole, killed = (Stage(tiny, tmp_path / name, [5, 4, 2, 3, 3]) for name in ("whole", "killed"))
    with pytest.raises(InterruptedError):
        killed.train(die_at)
    again = killed.train()
    assert killed.saved(again) == [4]
    assert again.adapter == whole.train().adapter
    assert [point.held_out_nll for point in again.curve] == [5, 4, 2, 3, 3]


def test_the_best_point_goes_with_the_stages_checkpoints(tiny, tmp_path):
    stage = Stage(tiny, tmp_path, [5, 4, 2, 3, 3])
    stage.train()
    folder = stage.run.checkpoints / "warmup"
    assert {path.name for path in folder.glob("*.pt")} == {"best-000004.pt", "step-000008.pt"}
    Checkpoints(folder).clear()
    assert not list(folder.iterdir())
