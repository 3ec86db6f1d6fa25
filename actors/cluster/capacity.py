"""What a cluster has or can have, against what a run needs: asked before anything is started."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import yaml
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.cluster.placement import POOL_LABEL
from proxykd.config import RunConfig
from proxykd.errors import ResourceError
from proxykd.planning.machine import SHARED_MEMORY, available_memory_gib, free_gib, held_gib
from proxykd.planning.requirements import Check, disk_needed, pool_demands, require, shared_memory_needed
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import is_remote, location

BOOTSTRAP = Path("~/ray_bootstrap_config.yaml")
"""Where `ray up` leaves cluster.yaml on the head node: the nodes that the autoscaler may add."""
SURVEY_TIMEOUT_S = 120.0
FIX = (
    "add nodes (max_workers in cluster.yaml; a pool's nodes are started with --labels proxykd-pool=NAME), or lower "
    "resources.engine_replicas, trainer_workers or micro_batch_tokens; engine_while_training=stop shares GPUs in turn"
)


@dataclass(frozen=True)
class Node:
    """A node that is there, or `count` that the autoscaler may add (of whose memory nothing is known)."""

    resources: dict[str, float]
    labels: dict[str, str]
    id: str | None = None
    count: int = 1
    facts: dict[str, Any] = field(default_factory=dict)


def require_cluster(run: RunDirectory, bootstrap: Path = BOOTSTRAP) -> None:
    """Refuses a run that this process's cluster cannot hold even with every node that its autoscaler may add.

    Raises:
        ResourceError: a table of what is needed and what there is; or a node that does not see the run directory.
    """
    config = run.config()
    there = [
        Node(node["Resources"], node["Labels"], node["NodeID"], facts=facts)
        for node, facts in _survey(run, [node for node in ray.nodes() if node["Alive"]])  # type: ignore[no-untyped-call]
    ]
    blind = [node.facts["host"] for node in there if not node.facts["sees_run"]]
    if blind:
        raise ResourceError(
            f"{', '.join(sorted(blind))} cannot see {run.root}: set runs_dir to a folder that every node mounts, or to "
            f"s3://bucket/prefix"
        )
    require(checks(config, there, _may_be_added(bootstrap.expanduser())), "the cluster", FIX)
    free = min(node.facts["disk_gib"] for node in there)
    shm = min(node.facts["shm_gib"] for node in there)
    held = 0.0 if is_remote(run.root) else held_gib(run.root)
    needed = 0.0 if is_remote(run.root) else disk_needed(config, held)
    require(
        [
            Check(f"disk at {run.root}, GiB", needed, free, free),
            Check("shared memory of a node, GiB", shared_memory_needed(config), shm, shm),
        ],
        "the cluster",
        "free space or set runs_dir; give containers more shared memory (--shm-size)",
    )


def checks(config: RunConfig, there: list[Node], added: list[Node]) -> list[Check]:
    """Returns each pool's checks: CPUs and GPUs in all, GPUs on one node, memory where no unknown node may come."""
    found = []
    for pool, demand in pool_demands(config).items():
        mine, more = _in(pool, there), _in(pool, added)
        name = f" in pool {pool}" if pool else ""
        for what, key, needed in (("CPUs", "CPU", demand.cpus), ("GPUs", "GPU", demand.gpus)):
            have = _sum(mine, key)
            found.append(Check(f"{what}{name}", needed, have, max(have, _sum(more, key))))
        if demand.largest:
            best, best_added = (max((n.resources.get("GPU", 0) for n in nodes), default=0) for nodes in (mine, more))
            found.append(Check(f"GPUs on one node{name}", demand.largest, best, max(best, best_added)))
        if not more:
            memory = sum(node.facts["memory_gib"] for node in mine)
            found.append(Check(f"memory{name}, GiB", demand.memory_gib, memory, memory))
    return found


def _in(pool: str | None, nodes: Iterable[Node]) -> list[Node]:
    return [node for node in nodes if pool is None or node.labels.get(POOL_LABEL) == pool]


def _sum(nodes: Iterable[Node], resource: str) -> float:
    return sum(node.count * node.resources.get(resource, 0) for node in nodes)


def _survey(run: RunDirectory, nodes: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Asks every node what it has free, and whether it sees the run directory."""
    look = ray.remote(_look)
    asked = [
        look.options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
            str(run.root)
        )
        for node in nodes
    ]
    return list(zip(nodes, ray.get(asked, timeout=SURVEY_TIMEOUT_S), strict=True))


def _look(run_root: str) -> dict[str, Any]:
    root = location(run_root)
    sees = (root / "config.json").exists()
    return {
        "host": ray.util.get_node_ip_address(),  # type: ignore[no-untyped-call]
        "sees_run": sees,
        "memory_gib": available_memory_gib(),
        "disk_gib": free_gib(root if sees and not is_remote(root) else Path("/")),
        "shm_gib": free_gib(SHARED_MEMORY),
    }


def _may_be_added(bootstrap: Path) -> list[Node]:
    """The cluster at its largest, where `ray up` made it."""
    if not bootstrap.exists():
        return []
    config = yaml.safe_load(bootstrap.read_text())
    head = config.get("head_node_type")
    return [
        Node(
            kind.get("resources", {}),
            kind.get("labels", {}),
            count=1 if name == head else kind.get("max_workers", config.get("max_workers", 0)),
        )
        for name, kind in config.get("available_node_types", {}).items()
    ]
