"""What a coordinator is started with. Imports no ray: the command line makes it before a cluster is there."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from actors.cluster.http_options import HttpOptions

NAMESPACE = "proxykd"


def actor_name(run_id: str) -> str:
    """The coordinator's, in the namespace above."""
    return f"coordinator-{run_id}"


@dataclass(frozen=True)
class Launch:
    """`deployer` is `module:Class`, injected so that actors/ knows no services/."""

    run: str
    deployer: str
    http: HttpOptions
    coordinator: str = "actors.run.coordinator:Coordinator"
    """The actor's class, so that a study's can be another than a run's."""
    job: str | None = None
    """The Ray job that it was started from."""
    cluster_pid: int | None = None
    """The process that holds a local Ray, to be ended as the coordinator's last act; None on a cluster."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Launch:
        facts = json.loads(text)
        http = facts.pop("http")
        return cls(http=HttpOptions(**http | {"key_digests": tuple(http["key_digests"])}), **facts)
