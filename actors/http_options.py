"""Where a run's HTTP routes listen. Imports no ray: the command line makes it before a cluster is there."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HttpOptions:
    """Where Serve listens, and the SHA-256 of each API key that its routes take (none: no key is asked for)."""

    host: str = "127.0.0.1"
    port: int = 8000
    key_digests: tuple[str, ...] = ()
