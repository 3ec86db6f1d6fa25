"""What a cluster has or can have, against what a run needs: asked before anything is started."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import ray
import yaml

from proxykd.config import RunConfig
from proxykd.errors import ResourceError
from proxykd.requirements import cpus_needed, gpus_needed

BOOTSTRAP = Path("~/ray_bootstrap_config.yaml")
"""Where `ray up` leaves cluster.yaml on the head node: the nodes that the autoscaler may add."""


def require_cluster(config: RunConfig, bootstrap: Path = BOOTSTRAP) -> None:
    """Refuses a run that this process's cluster cannot hold even with every node that its autoscaler may add.

    Raises:
        ResourceError: a table of what is needed and what there is.
    """
    there: Counter[str] = Counter(ray.cluster_resources())  # type: ignore[no-untyped-call]
    autoscaled = _may_be_added(bootstrap.expanduser())
    needed = {"CPU": cpus_needed(config), "GPU": gpus_needed(config)}
    short = {kind for kind, count in needed.items() if count > max(there[kind], autoscaled[kind])}
    if not short:
        return
    lines = ["the cluster cannot hold the run:", f"  {'':<4} {'needed':>7} {'there':>7} {'at most':>8}"]
    for kind, count in needed.items():
        mark = "  <- too few" if kind in short else ""
        most = max(there[kind], autoscaled[kind])
        lines.append(f"  {kind:<4} {count:>7} {there[kind]:>7.0f} {most:>8.0f}{mark}")
    lines.append("add nodes (max_workers in cluster.yaml), or lower resources.engine_replicas and trainer_workers")
    raise ResourceError("\n".join(lines))


def _may_be_added(bootstrap: Path) -> Counter[str]:
    """Resources of the cluster at its largest, where `ray up` made it."""
    most: Counter[str] = Counter()
    if not bootstrap.exists():
        return most
    config = yaml.safe_load(bootstrap.read_text())
    head = config.get("head_node_type")
    for name, kind in config.get("available_node_types", {}).items():
        count = 1 if name == head else kind.get("max_workers", config.get("max_workers", 0))
        for resource, amount in kind.get("resources", {}).items():
            most[resource] += count * amount
    return most
