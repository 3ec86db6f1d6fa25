"""Where a run's live view is: its coordinator knows, or its config."""

from __future__ import annotations

from typing import Any

import redis

from actors.cluster.launch import NAMESPACE, actor_name
from actors.telemetry.live_view import LiveView
from proxykd.runs.run_directory import RunDirectory


def redis_of_coordinator(run: RunDirectory) -> LiveView:
    """Returns the live view for a process of the run's own Ray: on whatever server the coordinator uses now."""
    import ray
    from ray.exceptions import RayError

    def url() -> str:
        try:
            coordinator: Any = ray.get_actor(actor_name(run.id), namespace=NAMESPACE)
            return str(ray.get(coordinator.redis_url.remote(), timeout=1.0))
        except (ValueError, RayError) as error:
            raise redis.ConnectionError(f"the coordinator of {run.id} is away") from error

    return LiveView(run.id, url)


def redis_of_config(run: RunDirectory) -> LiveView | None:
    """Returns the live view for any other process: on a server of one's own, None where the run has none."""
    url = run.config().redis.url
    return LiveView(run.id, lambda: url) if url else None
