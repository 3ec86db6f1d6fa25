"""Where a run's HTTP routes listen. Imports no ray: the command line makes it before a cluster is there."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class HttpOptions:
    """Where Serve listens, and the SHA-256 of each API key that its routes take (none: no key is asked for).

    On a cluster that runs share, each run's routes are under a prefix of its own.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    key_digests: tuple[str, ...] = ()
    prefix: str = "/"

    def beside_others(self, run_id: str) -> HttpOptions:
        """The same on a shared cluster."""
        return replace(self, prefix=f"/{run_id}")
