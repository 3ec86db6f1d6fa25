"""Runs side by side: a shared stage is made once, what waits to train trains together, a failure stops the others."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from actors.run import study_coordinator as study_module
from actors.run.study_coordinator import Together
from actors.training.training_runs import TrainTask
from proxykd.errors import RunStoppedError
from proxykd.runs.storage import write_json
from proxykd.study.studies import StudyDirectory, validate_study

RUN = {"corpus": {"path": "c.jsonl"}, "proxy": {"source": "p"}, "student": {"source": "s"}}


@pytest.fixture
def together(tmp_path, monkeypatch):
    """(means, runs, batches): four runs, two arms by two seeds; a training run only notes what it is asked."""
    raw = {"name": "t", "seeds": [1, 2], "arms": ["proxy_kd", "without_trust"], "run": RUN}
    raw["run"] = {**RUN, "runs_dir": str(tmp_path)}
    directory = StudyDirectory.create(validate_study(raw, "test"))
    batches = []

    def train(name, tasks, resources):
        time.sleep(0.05)
        if any(task.facts.get("dies") for task in tasks):
            raise OSError("a worker died too often")
        batches.append(sorted(task.facts["key"] for task in tasks))

    monkeypatch.setattr(study_module, "train", train)
    runs = directory.runs()
    return Together(None, directory, runs, runs[0].config().resources), runs, batches


def go(means, runs, body):
    """Each run in a thread, as the coordinator has them."""

    def one(run):
        failed = True
        try:
            made = body(run)
            failed = False
            return made
        finally:
            means.leave(failed)

    with ThreadPoolExecutor(len(runs)) as pool:
        return [pool.submit(one, run) for run in runs]


def shared_stage(means, run, stage, number=None):
    with means.turn(run, stage, number) as donor:
        if donor is None:
            means.train("x", TrainTask({"key": f"{stage} {run.id}"}, None), None)
        return donor


def test_what_two_arms_share_is_made_once_and_seeds_train_together(together):
    means, runs, batches = together

    def body(run):
        donors = [shared_stage(means, run, stage) for stage in ("warmup", "score", "distil")]
        return [donor and donor.id for donor in donors]

    found = {run.id: future.result() for run, future in zip(runs, go(means, runs, body), strict=True)}
    assert [len(batch) for batch in batches] == [2, 2, 4]
    for seed in (1, 2):
        mine = [donors for run_id, donors in found.items() if f"-s{seed}-" in run_id]
        assert sorted(donors.count(None) for donors in mine) == [1, 3]
        [taker] = [donors for donors in mine if donors.count(None) == 1]
        assert taker[2] is None
        assert f"-s{seed}-" in taker[0]


def test_a_stage_that_was_finished_before_is_found_again(tmp_path, together):
    _, runs, batches = together
    directory = StudyDirectory(runs[0].root.parents[1])
    write_json(runs[0].stages / "align-02.json", {"stage": "align", "result": {}})
    means = Together(None, directory, runs, runs[0].config().resources)
    same_seed = next(run for run in runs[1:] if run.config().seed == runs[0].config().seed)
    with means.turn(same_seed, "align", 2) as donor:
        assert donor.id == runs[0].id
    with means.turn(same_seed, "align", 1) as donor:
        assert donor is None
    assert batches == []


def test_a_run_that_is_at_work_keeps_the_others_from_training_alone(together):
    means, runs, batches = together

    def body(run):
        if run is runs[0]:
            time.sleep(0.5)  # samples, say
        means.train("x", TrainTask({"key": run.id}, None), None)

    for future in go(means, runs, body):
        future.result()
    assert [len(batch) for batch in batches] == [4]


def test_a_failure_stops_the_others_where_they_are(together):
    means, runs, batches = together

    def body(run):
        if run is runs[0]:
            raise ValueError("its corpus is torn")
        means.train("x", TrainTask({"key": run.id}, None), None)

    first, *others = go(means, runs, body)
    assert isinstance(first.exception(), ValueError)
    assert all(isinstance(other.exception(), RunStoppedError) for other in others)
    assert batches == []


def test_a_training_run_that_dies_is_every_waiting_runs_error(together):
    means, runs, _ = together
    ends = go(means, runs, lambda run: means.train("x", TrainTask({"key": run.id, "dies": True}, None), None))
    assert all("died too often" in str(end.exception()) for end in ends)
