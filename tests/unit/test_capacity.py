"""A cluster that cannot hold a run says so before anything starts."""

from __future__ import annotations

import pytest
import ray

from actors.capacity import require_cluster
from proxykd.config import validate_config
from proxykd.errors import ResourceError

RAW = {"name": "t", "corpus": {"path": "c"}, "proxy": {"source": "p"}, "student": {"source": "s"}}
GPUS = {"device": "gpu", "trainer_workers": 8, "engine_replicas": 2, "engine_tensor_parallel": 4}
UP = """
max_workers: 2
head_node_type: head
available_node_types:
  head: {resources: {CPU: 8}}
  gpu: {resources: {CPU: 96, GPU: 8}, max_workers: %d}
"""


@pytest.fixture
def small_cluster(monkeypatch):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 0.0})


def test_what_is_there_suffices(small_cluster, tmp_path):
    require_cluster(validate_config(RAW, "test"), tmp_path / "none")


def test_too_few_gpus_are_a_table_of_what_is_missing(small_cluster, tmp_path):
    with pytest.raises(ResourceError) as refused:
        require_cluster(validate_config(RAW | {"resources": GPUS}, "test"), tmp_path / "none")
    lines = str(refused.value).splitlines()
    assert lines[2].split() == ["CPU", "12", "8", "8", "<-", "too", "few"]
    assert lines[3].split() == ["GPU", "16", "0", "0", "<-", "too", "few"]


def test_nodes_that_the_autoscaler_may_add_count(small_cluster, tmp_path):
    (tmp_path / "up.yaml").write_text(UP % 2)
    require_cluster(validate_config(RAW | {"resources": GPUS}, "test"), tmp_path / "up.yaml")
    (tmp_path / "up.yaml").write_text(UP % 1)
    with pytest.raises(ResourceError, match="GPU"):
        require_cluster(validate_config(RAW | {"resources": GPUS}, "test"), tmp_path / "up.yaml")
