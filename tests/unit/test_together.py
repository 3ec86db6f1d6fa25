"""Runs side by side: a shared stage is made once, what waits to train trains together, a failure stops the others."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from actors.engine.proxy_engine import EngineSpec
from actors.run import study_facilities
from actors.run.study_facilities import SharedEngines, Together
from actors.training.training_runs import TrainRequest
from actors.training.worker_loop import LoopCall
from proxykd.config import LoraConfig
from proxykd.errors import RunStoppedError
from proxykd.runs.journal import Journal
from proxykd.runs.storage import write_json
from proxykd.stages.align import ALIGN
from proxykd.study.studies import StudyDirectory, validate_study
from tests.stage_results import aligned, finish

RUN = {"corpus": {"path": "c.jsonl"}, "proxy": {"source": "p"}, "student": {"source": "s"}}


@pytest.fixture
def together(tmp_path, monkeypatch):
    """(means, runs, batches): four runs, two arms by two seeds; a training run only notes what it is asked."""
    raw = {"name": "t", "seeds": [1, 2], "arms": ["proxy_kd", "without_trust"], "run": RUN}
    raw["run"] = {**RUN, "runs_dir": str(tmp_path)}
    directory = StudyDirectory.create(validate_study(raw, "test"))
    batches = []

    def train(name, requests, resources):
        time.sleep(0.05)
        if any(request.call.task == "dies" for request in requests):
            raise OSError("a worker died too often")
        batches.append(sorted(request.call.key for request in requests))

    monkeypatch.setattr(study_facilities, "train", train)
    runs = directory.runs()
    return facilities_of(runs), runs, batches


def facilities_of(runs):
    return Together("t", runs, runs[0].config().resources, lambda: None)


def request(key, task=None):
    return TrainRequest(LoopCall("run", key, None, task, "outcome", None), None)


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


def shared_stage(together, run, key):
    with together.turn(run, key) as donor:
        if donor is None:
            together.train("x", request(f"{key} {run.id}"), None)
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
    finish(runs[0], ALIGN, aligned(2, "r02-abc"), 2)
    means = facilities_of(runs)
    same_seed = next(run for run in runs[1:] if run.config().seed == runs[0].config().seed)
    with means.turn(same_seed, "align-02") as donor:
        assert donor.id == runs[0].id
    with means.turn(same_seed, "align-01") as donor:
        assert donor is None
    assert batches == []


def test_a_run_that_is_at_work_keeps_the_others_from_training_alone(together):
    means, runs, batches = together

    def body(run):
        if run is runs[0]:
            time.sleep(0.5)  # samples, say
        means.train("x", request(run.id), None)

    for future in go(means, runs, body):
        future.result()
    assert [len(batch) for batch in batches] == [4]


def test_a_failure_stops_the_others_where_they_are(together):
    means, runs, batches = together

    def body(run):
        if run is runs[0]:
            raise ValueError("its corpus is torn")
        means.train("x", request(run.id), None)

    first, *others = go(means, runs, body)
    assert isinstance(first.exception(), ValueError)
    assert all(isinstance(other.exception(), RunStoppedError) for other in others)
    assert batches == []


def test_a_training_run_that_dies_is_every_waiting_runs_error(together):
    means, runs, _ = together
    ends = go(means, runs, lambda run: means.train("x", request(run.id, "dies"), None))
    assert all("died too often" in str(end.exception()) for end in ends)


class Deployer:
    """Notes the engines that it is told to start and to stop."""

    def __init__(self):
        self.told = []

    def deploy_proxy(self, spec):
        self.told.append(spec.lora_rank)

    def stop(self, app):
        self.told.append("stop")


@pytest.mark.parametrize(("mode", "told"), [("merged", [16, 24, 9]), ("lora", [16, "stop", 24, "stop", 9])])
def test_adapters_of_another_slot_rank_have_an_engine_of_their_own(together, tmp_path, mode, told):
    """Merged adapters of any rank go into the same weights; slots that hold several at once have one rank."""
    _, [run, *_], _ = together
    deployer = Deployer()
    engines = SharedEngines(deployer, StudyDirectory(run.root.parents[1]))
    write_json(tmp_path / "model" / "manifest.json", {})
    config = run.config()
    for rank in (16, 24, 9):  # 16 and 9 take slots of 16
        ranked = config.proxy.model_copy(update={"lora": LoraConfig(rank=rank)})
        spec = EngineSpec.of_run(run, config.model_copy(update={"proxy": ranked}))
        with engines.proxy(replace(spec, mode=mode, model=str(tmp_path / "model")), None, 1.0):
            pass
    assert deployer.told == told


def test_an_engine_answers_only_for_specs_that_are_alike(together, tmp_path):
    _, [run, *_], _ = together
    deployer = Deployer()
    engines = SharedEngines(deployer, StudyDirectory(run.root.parents[1]))
    write_json(tmp_path / "model" / "manifest.json", {})
    spec = replace(EngineSpec.of_run(run, run.config()), mode="merged", model=str(tmp_path / "model"))
    for one in (
        spec,
        replace(spec, prefix="another run's"),
        replace(spec, dtype="float32"),
        replace(spec, max_length=9),
    ):
        with engines.proxy(one, None, 1.0):
            pass
    assert deployer.told == [16, 16, "stop", 16, "stop", 16]


def test_a_stage_that_one_run_left_half_done_is_its_own_to_finish(together):
    """Else another would begin it from nothing: completions that were paid for would be bought again."""
    _, runs, _batches = together
    [first, second] = [run for run in runs if run.config().seed == 1]
    Journal(second.journal, host="h", job=None, cluster_pid=None).append("STAGE_STARTED", stage="warmup", round=None)
    again = facilities_of(runs)
    order = []

    def body(run):
        with again.turn(run, "warmup") as donor:
            if donor is None:
                order.append(run.id)
                again.train("x", request(run.id), None)
        return donor and donor.id

    found = {run.id: end.result() for run, end in zip(runs, go(again, runs, body), strict=True)}
    assert (found[second.id], found[first.id]) == (None, second.id)
    assert second.id in order
    assert first.id not in order
