"""Which nodes of a cluster a part of a run is placed on."""

from __future__ import annotations

from typing import Any

POOL_LABEL = "proxykd-pool"
"""The node label that names a pool: `ray start --labels proxykd-pool=NAME`, or `labels` of a type in cluster.yaml."""
HEAD = "node:__internal_head__"
"""Ray's own resource of the head node."""


def in_pool(pool: str | None) -> dict[str, Any]:
    """Ray's option that keeps a task or actor within a pool; none where the config names no pool."""
    return {} if pool is None else {"label_selector": {POOL_LABEL: pool}}
