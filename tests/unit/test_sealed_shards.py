"""A sealed teacher over two workers that share its weights: a part on each, and the same true KL as on one."""

from __future__ import annotations

from functools import partial

import pytest

from proxykd.evaluation.fidelity import SealedTeacher
from proxykd.models.loading import initialise
from proxykd.runs.run_directory import RunDirectory
from proxykd.training.loops import evaluate as evaluate_loop
from tests.forks import on_ranks
from tests.small_run import run_config
from tests.stage_ranks import worker_of
from tests.unit.test_training import rows

WORKERS = 2
HELD_OUT = (rows(1, seed=4), rows(7, seed=4))
"""Of the one record the second worker has no micro-batch of its own at all."""


def evaluate(run, held_out):
    """(facts of the stage, the part of the teacher's weights that this process held once it was placed)."""
    shares = []

    class Watched(SealedTeacher):
        def __init__(self, teacher):
            parts = [getattr(p, "to_local", lambda p=p: p)() for p in teacher.parameters()]
            shares.append(sum(part.numel() for part in parts) / sum(p.numel() for p in teacher.parameters()))
            super().__init__(teacher)

    evaluate_loop.SealedTeacher = Watched
    evaluate_loop.read_slice = evaluate_loop.student_slice = lambda *_: held_out
    evaluate_loop.bytes_of = lambda *_: None
    found = evaluate_loop.evaluate(worker_of(run, "evaluate", []), evaluate_loop.EvaluationTask([], None))
    [share] = shares
    return found.model_dump()["models"], share


def evaluate_all(run):
    return [evaluate(run, held_out) for held_out in HELD_OUT]


@pytest.fixture
def run_of(tiny, tmp_path):
    def run_of(name, **resources):
        local = {"source": str(tiny), "dtype": "float32"}
        config = run_config(
            str(tiny), str(tmp_path / name), teacher={"local": local}, distillation={"source": "none"},
            resources={"micro_batch_tokens": 40, **resources},
        )  # fmt: skip
        run = RunDirectory.create(config)
        for model, directory in (("teacher", run.models / "teacher"), ("student", run.models / "student")):
            initialise(config.models[model], directory)
        initialise(config.student.model_copy(update={"drop_layers": (1, 2)}), run.student)
        return run

    return run_of


def test_two_workers_share_the_teacher_and_find_the_same_true_kl(run_of, tmp_path, monkeypatch):
    for name in ("SealedTeacher", "read_slice", "student_slice", "bytes_of"):
        monkeypatch.setattr(evaluate_loop, name, getattr(evaluate_loop, name))
    alone = run_of("one")
    expected = evaluate_all(alone)
    run = run_of("two", parallel="fsdp2", trainer_workers=WORKERS)
    for found in on_ranks(WORKERS, partial(evaluate_all, run), tmp_path / "ranks"):
        for (ours, share), (theirs, whole) in zip(found, expected, strict=True):
            assert (share, whole) == (pytest.approx(1 / WORKERS, rel=0.01), 1.0)
            for model in ("student_before", "student_after"):
                assert ours[model]["record_kls"] == pytest.approx(theirs[model]["record_kls"], rel=1e-4)
                assert min(theirs[model]["record_kls"]) > 0.01
