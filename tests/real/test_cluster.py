"""Several real Ray nodes: a job submitted twice, nodes lost in the middle and replaced, its driver gone, stopped, resumed."""

from __future__ import annotations

import json
import re
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml

from proxykd.runs.journal import replay
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import read_json, sha256_file
from tests import families, tiny_model
from tests.chaos.runs import check_records
from tests.object_store import free_port
from tests.ray_nodes import RayNodes, pool_of, wait_for
from tests.small_run import run_config

pytestmark = [pytest.mark.alone, pytest.mark.timeout(3600)]
POOLS = {"engine": "engine", "trainer": "trainer", "data": "data"}


def write_run(folder):
    """The working directory of a job: a config, a corpus beside it, and a model with a padded vocabulary and thoughts."""
    folder.mkdir()
    rows = tiny_model.corpus_rows(100)
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    split = {"validation": 0.1, "test": 0.1, "warmup": 0.2, "alignment": 0.4, "distillation": 0.4}
    config = run_config(
        str(families.make("qwen3", folder.parent / "qwen3", layers=4)),
        "unused",
        corpus={"path": "corpus.jsonl", "max_length": 96, "shard_records": 2, "split": split},
        warmup={"learning_rate": 1e-3, "global_batch": 2, "epochs": 3},
        alignment={"rounds": 1, "learning_rate": 1e-3, "global_batch": 4, "max_new_tokens": 12, "parity_records": 2},
        score={"source": "trainer"},
        resources={"engine_max_seqs": 16, "micro_batch_tokens": 512, "checkpoint_seconds": 0.0}
        | {"pools": POOLS, "engine_while_training": "stop"},
    )
    sections = config.model_dump(mode="json", exclude_defaults=True)
    del sections["runs_dir"]
    (folder / "c.yaml").write_text(yaml.safe_dump(sections))
    return config.run_id


class Operator:
    """Submits the job, from a directory that is not the job's."""

    def __init__(self, nodes, folder, elsewhere):
        self.nodes, self.folder, self.elsewhere = nodes, folder, elsewhere
        self.port = str(free_port())

    def submit(self, *options):
        entry = ["proxykd", "run", "c.yaml", "--http-port", self.port]
        command = ["ray", "job", "submit", "--working-dir", str(self.folder), *options, "--", *entry]
        told = self.nodes.run(*command, cwd=self.elsewhere, timeout=900)
        return re.search(r"raysubmit_\w+", told.stdout)[0], told

    def job(self, action, job):
        return self.nodes.run("ray", "job", action, job, cwd=self.elsewhere).stdout

    def status(self, root):
        return json.loads(self.nodes.run("proxykd", "status", str(root), "--json", cwd=self.elsewhere).stdout)

    def places(self, title):
        """The pools whose nodes run a kind of process."""
        return {pool_of(process) for process in self.nodes.processes(title)}


@pytest.fixture(scope="module")
def survived(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster")
    run_id = write_run(folder / "job")
    (folder / "elsewhere").mkdir()
    root = folder / "shared" / "runs" / run_id
    facts = {"root": root}
    with pytest.MonkeyPatch.context() as patch, RayNodes() as nodes:
        patch.delenv("PROXYKD_RUNS_DIR", raising=False)
        operator = facts["operator"] = Operator(nodes, folder / "job", folder / "elsewhere")
        option = f'--runtime-env-json={{"env_vars": {{"PROXYKD_RUNS_DIR": "{root.parent}"}}}}'
        with ThreadPoolExecutor() as both:  # the first without a runs_dir: within the working directory
            lost, too_small = both.submit(operator.submit), both.submit(operator.submit, option)
        facts |= {"lost": lost.result()[1], "too small": too_small.result()[1]}
        nodes.add("engine", 2)
        nodes.add("trainer", 2)

        first, _ = operator.submit("--no-wait", option)
        wait_for(lambda: root.exists() and replay(root / "journal"), 900, "the first claim")
        second, _ = operator.submit("--no-wait", option)
        facts["jobs"] = (first, second)
        run = RunDirectory.open(root)

        wait_for(lambda: list(run.checkpoints.glob("warmup/*.ok")), 900, "training")
        facts["places"] = {
            "trainer": operator.places("ray::RayTrainWorker"),
            "coordinator": operator.places("ray::Coordinator"),
        }
        facts["data"] = operator.places("ray::FlatMap")
        facts["first status"] = operator.status(root)
        nodes.lose("trainer")
        facts["lost in the middle"] = not (run.stages / "warmup.json").exists()
        nodes.add("trainer", 2)
        wait_for(lambda: (run.stages / "warmup.json").exists(), 900, "the warm-up on a node that joined late")

        wait_for(lambda: list(run.pairs(1).glob("*.ok")), 900, "the first pairs")
        facts["places"]["engine"] = operator.places("ray::ServeReplica:.*-proxy") or operator.places("VLLM::EngineCore")
        facts["shards"] = {path: sha256_file(path.with_suffix(".parquet")) for path in run.pairs(1).glob("*.ok")}
        nodes.lose("engine")
        [driver] = [
            p
            for p in nodes.processes("proxykd run c.yaml")
            if p.environ().get("RAY_JOB_CONFIG_JSON_ENV_VAR", "").find(first) > 0 and "python" in p.exe()
        ]
        driver.send_signal(signal.SIGKILL)
        facts["holders"] = len(nodes.processes("actors.hosting.coordinator_host"))
        nodes.add("engine", 2)
        wait_for(lambda: list(run.checkpoints.glob("align-01/*.ok")), 900, "round 1's training")
        facts["engine while training"] = operator.places("VLLM::EngineCore")
        facts["first job"] = operator.job("status", first)

        wait_for(lambda: (run.stages / "align-01.json").exists(), 900, "round 1's end")
        facts["stop"] = operator.job("stop", second)
        wait_for(lambda: operator.status(root)["state"] == "stopped", 300, "the stop")
        facts["left"] = operator.places("ray::Coordinator") | operator.places("VLLM::EngineCore")
        _, facts["end"] = operator.submit(option)
        facts["last status"] = operator.status(root)
        wait_for(
            lambda: not nodes.processes("actors.hosting.coordinator_host"), 60, "the end of what held the run's jobs"
        )
        yield facts


def test_a_run_within_the_jobs_own_directory_is_refused(survived):
    assert survived["lost"].returncode != 0
    assert "runs_dir is 'runs': in a Ray job that is within the job's working directory" in survived["lost"].stdout


def test_a_cluster_without_the_pools_is_refused_with_a_table(survived):
    assert survived["too small"].returncode != 0
    assert re.search(r"CPUs in pool engine +1 +0 +0 +<- too little", survived["too small"].stdout)


def test_parts_are_placed_in_their_pools(survived):
    assert survived["places"] == {"trainer": {"trainer"}, "coordinator": {"data"}, "engine": {"engine"}}
    assert survived["data"] <= {"data"}


def test_engine_and_trainers_take_turns_where_the_config_says_so(survived):
    assert survived["engine while training"] == set()


def test_a_run_that_is_submitted_twice_runs_once(survived):
    claims = [entry for entry in replay(survived["root"] / "journal") if entry["event"] == "EPOCH_CLAIMED"]
    assert [claim["epoch"] for claim in claims] == [1, 2]  # the second is the resume after the stop
    assert claims[0]["job"] == survived["first status"]["job"] == survived["jobs"][0]


def test_nodes_that_die_and_a_driver_that_is_gone_cost_nothing_that_was_done(survived):
    root = survived["root"]
    assert survived["lost in the middle"]
    for marker, sha256 in survived["shards"].items():
        assert sha256_file(marker.with_suffix(".parquet")) == sha256
    assert read_json(root / "stages" / "warmup.json")["attempts"] == 1
    assert "failed" in survived["first job"]
    assert survived["holders"] == 2
    check_records(RunDirectory.open(root))


def test_a_job_that_is_stopped_stops_its_run_and_leaves_nothing(survived):
    assert "STOPPED" in survived["stop"] or "stopped" in survived["stop"]
    assert survived["left"] == set()


def test_submitting_it_again_resumes_and_ends_with_the_report(survived):
    assert survived["end"].returncode == 0, survived["end"].stdout[-3000:]
    assert "student:" in survived["end"].stdout
    assert survived["last status"]["state"] == "finished"
    families.check_run(RunDirectory.open(survived["root"]))
