"""Ray Train and Ray Data for real: one worker and two give the same loss curve, a killed one the same adapter."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from actors.cluster.launch import NAMESPACE
from actors.data.streams import stream_corpus
from actors.telemetry.progress import Reporter
from actors.training.training_runs import TrainRequest, train
from actors.training.worker_loop import LoopCall
from proxykd.data.corpus_segments import source_of
from proxykd.data.corpus_store import manifest, slice_ranges, write_corpus
from proxykd.models.loading import initialise
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import read_json, verify_directory
from proxykd.training.loops.warm_up import WarmupTask
from proxykd.training.loops.warm_up import warm_up as warm_up_loop
from tests import tiny_model
from tests.chaos.victims import pids_within
from tests.object_store import new_bucket
from tests.small_run import run_config


class Silent:
    """Stands where the coordinator takes progress."""

    def progress(self, *report) -> None:
        pass

    def refusal(self) -> None:
        pass


@pytest.fixture(scope="module")
def prepared(cluster, tiny, tmp_path_factory):
    import ray

    folder = tmp_path_factory.mktemp("train")
    (folder / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tiny_model.corpus_rows(80)))
    runs = {}
    corpus = {"path": str(folder / "c.jsonl"), "max_length": 96, "shard_records": 4}
    places = {"one": str(folder / "runs"), "two, in S3": f"{new_bucket()}/runs", "killed": str(folder / "killed")}
    for name, runs_dir in places.items():
        workers = 2 if name == "two, in S3" else 1
        resources = {"trainer_workers": workers, "micro_batch_tokens": 64, "checkpoint_seconds": 0.0}
        warmup = {"learning_rate": 1e-3, "global_batch": 4, "epochs": 12}
        config = run_config(str(tiny), runs_dir, corpus=corpus, resources=resources, warmup=warmup)
        run = RunDirectory.create(config)
        initialise(config.proxy, run.models / "proxy")
        write_corpus(run, config, source_of(config), run.models / "proxy")
        runs[name] = run
    silent = ray.remote(Silent).options(name="silent", namespace=NAMESPACE, num_cpus=0).remote()
    ray.get(silent.__ray_ready__.remote())
    yield runs
    ray.kill(silent)


def run_stage(run, key, loop, task, stream):
    outcome = run.root / f"outcome-{key}.json"
    call = LoopCall(str(run.root), key, loop, task, str(outcome), Reporter("silent", NAMESPACE, run.id))
    train(f"{run.root.parent.name}-{key}", [TrainRequest(call, stream)], run.config().resources)
    return read_json(outcome)


def test_a_torn_shard_ends_its_stage_and_is_named(prepared, tiny, tmp_path):
    run = RunDirectory(tmp_path / "torn")
    shutil.copytree(prepared["one"].root, run.root)
    stream, task = stream_corpus(slice_ranges(run, "warmup")), WarmupTask(manifest(run)["warmup"])
    victim = run.corpus / "warmup" / "shard-00001.parquet"
    victim.write_bytes(victim.read_bytes()[:-9])
    error = run_stage(run, "warmup", warm_up_loop, task, stream)["error"]
    assert error["type"] == "IntegrityError"
    assert "warmup/shard-00001.parquet has sha256" in error["message"]


def warm_up(run):
    stream, task = stream_corpus(slice_ranges(run, "warmup")), WarmupTask(manifest(run)["warmup"])
    return run_stage(run, "warmup", warm_up_loop, task, stream)["result"]


def kill_a_worker_after(cluster, run, step):
    """SIGKILL to a Train worker once the stage's checkpoint of `step` stands."""
    while not any(int(path.stem.removeprefix("step-")) >= step for path in run.checkpoints.glob("*/step-*.ok")):
        time.sleep(0.02)
    [worker, *_] = pids_within(cluster, "ray::RayTrainWorker")
    os.kill(worker, signal.SIGKILL)
    last: int = max(int(path.stem.removeprefix("step-")) for path in run.checkpoints.glob("*/step-*.ok"))
    return last


def test_one_and_two_workers_give_the_same_loss_curve(prepared):
    """The second run lies in an S3 store: corpus, checkpoints and adapter."""
    results = {name: warm_up(prepared[name]) for name in ("one", "two, in S3")}
    one, two = ([step["nll"] for step in result["steps"]] for result in results.values())
    assert len(one) == len(two) > 2
    assert one == pytest.approx(two, abs=1e-4)
    assert one[-1] < one[0]
    first, second = (result["validation"]["held_out_nll"] for result in results.values())
    assert first == pytest.approx(second, abs=1e-4)
    assert verify_directory(prepared["two, in S3"].adapters / results["two, in S3"]["adapter"])["round"] == 0


def test_a_worker_that_is_killed_between_steps_ends_with_the_same_adapter(cluster, prepared):
    with ThreadPoolExecutor(1) as pool:
        stage = pool.submit(warm_up, prepared["killed"])
        at = kill_a_worker_after(cluster, prepared["killed"], 2)
        killed = stage.result()
    [uninterrupted] = prepared["one"].adapters.iterdir()
    assert at < len(killed["steps"])
    assert killed["adapter"] == uninterrupted.name  # which carries the SHA-256 of the weights
    weights = "adapter_model.safetensors"
    assert (prepared["killed"].adapters / killed["adapter"] / weights).read_bytes() == (
        uninterrupted / weights
    ).read_bytes()
