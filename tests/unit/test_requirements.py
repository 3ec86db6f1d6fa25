"""What a run needs: by stage, by pool, on this machine and on a cluster; what falls short is a table."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from actors.cluster.capacity import Node, _may_be_added, checks
from actors.cluster.placement import POOL_LABEL
from proxykd.config import validate_config
from proxykd.errors import ResourceError
from proxykd.planning.machine import require_machine
from proxykd.planning.requirements import Check, cpus_needed, gpus_needed, pool_demands, require

RAW = {"name": "t", "corpus": {"path": "c"}, "proxy": {"source": "p"}, "student": {"source": "s"}}
UP = """
max_workers: 2
head_node_type: head
available_node_types:
  head: {resources: {CPU: 8}}
  gpu: {resources: {CPU: 96, GPU: 8}, max_workers: %d, labels: {proxykd-pool: %s}}
"""


def with_resources(**resources):
    return validate_config(RAW | {"resources": resources}, "test")


def gpus(**resources):
    return with_resources(device="gpu", trainer_workers=8, engine_replicas=2, engine_tensor_parallel=4, **resources)


def node(pool=None, memory=64.0, **resources):
    labels = {POOL_LABEL: pool} if pool else {}
    return Node(resources, labels, "id", facts={"memory_gib": memory})


def short(found):
    return {check.what for check in found if check.short}


def test_engine_and_trainers_side_by_side_or_in_turn():
    assert (cpus_needed(gpus()), gpus_needed(gpus())) == (12, 16)
    in_turn = gpus(engine_while_training="stop")
    assert (cpus_needed(in_turn), gpus_needed(in_turn)) == (10, 8)
    asleep = gpus(engine_while_training="sleep")  # its processes stay, beside the trainers
    assert (cpus_needed(asleep), gpus_needed(asleep)) == (12, 8)


def test_each_replica_has_a_task_that_feeds_it():
    assert cpus_needed(with_resources(engine_replicas=6, engine_while_training="stop")) == 12


def test_a_run_that_asks_no_engine_needs_none():
    text_alone = {"alignment": {"preference": False}, "score": {"source": "trainer"}, "resources": {"device": "gpu"}}
    assert gpus_needed(validate_config(RAW | text_alone, "test")) == 1
    assert gpus_needed(validate_config(RAW | text_alone | {"score": {"source": "engine"}}, "test")) == 1
    assert gpus_needed(validate_config(RAW | text_alone | {"alignment": {}}, "test")) == 2


def test_pools_need_what_their_own_parts_do():
    found = pool_demands(gpus(pools={"engine": "vllm", "trainer": "train"}))
    assert {pool: (d.cpus, d.gpus, d.largest) for pool, d in found.items()} == {
        "vllm": (2, 8, 4),
        "train": (8, 8, 0),
        None: (2, 0, 0),
    }


def test_a_cluster_is_judged_pool_by_pool():
    config = gpus(pools={"engine": "vllm", "trainer": "train"})
    nodes = [node(CPU=8), node("train", CPU=32, GPU=8), node("vllm", CPU=8, GPU=2), node("vllm", CPU=8, GPU=6)]
    assert short(checks(config, nodes, [])) == set()
    assert short(checks(config, nodes[:3], [])) == {"GPUs in pool vllm", "GPUs on one node in pool vllm"}
    assert short(checks(config, [nodes[0], nodes[2], nodes[3]], [])) == {
        "CPUs in pool train",
        "GPUs in pool train",
        "memory in pool train, GiB",
    }


def test_a_replica_needs_its_gpus_on_one_node():
    spread = [node(CPU=8, GPU=2) for _ in range(8)]
    assert short(checks(gpus(), spread, [])) == {"GPUs on one node"}


def test_nodes_that_the_autoscaler_may_add_count_in_their_pool(tmp_path):
    path = tmp_path / "up.yaml"
    path.write_text(UP % (2, "all"))
    head = [node(CPU=8)]
    assert _may_be_added(tmp_path / "none") == []
    assert short(checks(gpus(), head, _may_be_added(path))) == set()
    path.write_text(UP % (1, "all"))
    assert short(checks(gpus(), head, _may_be_added(path))) == {"GPUs"}
    elsewhere = gpus(pools={"engine": "other"})
    path.write_text(UP % (2, "all"))
    assert "GPUs in pool other" in short(checks(elsewhere, head, _may_be_added(path)))


def test_what_falls_short_is_a_table_and_a_way_out():
    with pytest.raises(ResourceError) as refused:
        require([Check("GPUs", 16, 0, 8), Check("CPUs", 12, 8, 96)], "the cluster", "add nodes")
    lines = str(refused.value).splitlines()
    assert lines[0] == "the cluster cannot hold the run:"
    assert lines[2].split() == ["GPUs", "16", "0", "8", "<-", "too", "little"]
    assert lines[3].split() == ["CPUs", "12", "8", "96"]
    assert lines[4] == "add nodes"


def test_this_machine_is_judged_before_anything_starts(tmp_path):
    require_machine(with_resources(), tmp_path)
    with pytest.raises(ResourceError, match=r"logical CPUs .* 9 .* 8 .*too little"):
        require_machine(with_resources(trainer_workers=6), tmp_path)
    with pytest.raises(ResourceError, match=r"GPUs .* 91 .*too little"):
        require_machine(with_resources(device="gpu", trainer_workers=90, logical_cpus=99), tmp_path)
    huge = {"source": "meta-llama/Llama-2-70b-hf", "dtype": "float32"}
    config = validate_config(RAW | {"proxy": huge, "student": huge | {"method": "lora"}}, "test")
    with pytest.raises(ResourceError, match=r"memory, GiB .*too little"):
        require_machine(config, tmp_path)


@pytest.fixture
def unwritable(tmp_path):
    """A folder that this process cannot write: by its mode, or for root, whom no mode stops, on a read-only mount."""
    if os.geteuid() != 0:
        tmp_path.chmod(0o500)
        yield tmp_path
        tmp_path.chmod(0o700)
        return
    mount = ["mount", "-t", "tmpfs", "-o", "ro,size=4m", "tmpfs", tmp_path]
    if subprocess.run(mount, capture_output=True).returncode:
        yield Path("/sys")  # containers that may not mount have it read-only
        return
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def test_storage_that_is_read_only_is_refused(unwritable):
    with pytest.raises(ResourceError, match="cannot be written"):
        require_machine(with_resources(), unwritable)


def test_a_disk_that_is_nearly_full_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2**40, 2**40 - 2**20, 2**20))
    with pytest.raises(ResourceError, match=r"disk at .* 2 .*too little"):
        require_machine(with_resources(), tmp_path)
