"""The student by SFT on two gloo ranks, replicas and sharded layers: they end, and stand, where one rank does."""

from __future__ import annotations

from functools import partial
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file

from proxykd.data.corpus_store import read_slice
from proxykd.evaluation.fidelity import RecordScores
from proxykd.training.loops.sft import SftTask, sft
from proxykd.training.worker import Worker
from tests.forks import on_ranks
from tests.stage_ranks import Ranks, make_run

NLLS = (5.0, 4.0, 2.0, 3.0, 3.0)
"""At the start, and after every other step: with a patience of 2 the stage ends after 8 of its 10 steps."""
SETTINGS = {"learning_rate": 1e-2, "global_batch": 8, "epochs": 5, "evaluations": 5, "early_stopping": 2}


def run_of(tiny, folder, world, mode):
    resources = {"micro_batch_tokens": 128, "trainer_threads": 1, "trainer_workers": world, "parallel": mode}
    return make_run(tiny, folder, sft=SETTINGS, resources=resources)


def train(root):
    """The loop with these points, whose every worker is told the same."""
    ranks, told = Ranks(root), iter(NLLS)
    rows = read_slice(ranks.run, "distillation")[:13]

    def judged(*_):
        return RecordScores([1, 1], [next(told)] * 2, [0.0, 0.0], ["a", "b"])

    with mock.patch.object(Worker, "validate", judged):
        result = ranks("sft", sft, SftTask(len(rows)), rows)
    return result.kept, len(result.steps), [point.step for point in result.curve]


@pytest.fixture(scope="module")
def alone(tiny, tmp_path_factory):
    run = run_of(tiny, tmp_path_factory.mktemp("alone"), 1, "ddp")
    return train(str(run.root)), load_file(run.sft_student / "model.safetensors")


@pytest.mark.parametrize("mode", ["ddp", "fsdp2"])
def test_two_ranks_stop_together_and_stand_at_the_best_point(tiny, tmp_path, alone, mode):
    expected, weights = alone
    assert expected == (4, 8, [0, 2, 4, 6, 8])
    run = run_of(tiny, tmp_path, 2, mode)
    assert on_ranks(2, partial(train, str(run.root)), tmp_path / "ranks") == [expected, expected]
    found = load_file(run.sft_student / "model.safetensors")
    for name, value in weights.items():
        torch.testing.assert_close(found[name], value, atol=2e-3, rtol=1e-2)
