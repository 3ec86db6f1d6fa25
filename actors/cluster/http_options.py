"""Where a run's HTTP routes listen. Imports no ray: the command line makes it before a cluster is there."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, replace

from proxykd.errors import ResourceError

PORTS_TRIED = 100


@dataclass(frozen=True)
class HttpOptions:
    """Where Serve listens, and the SHA-256 of each API key that its routes take (none: no key is asked for).

    `or_next`: where the port is taken, the next one that is free serves as well. On a cluster that runs share, each
    run's routes are under a prefix of its own.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    key_digests: tuple[str, ...] = ()
    prefix: str = "/"
    or_next: bool = False

    def beside_others(self, run_id: str) -> HttpOptions:
        """Returns these options with the run's own prefix, as runs that share a cluster have."""
        return replace(self, prefix=f"/{run_id}")

    def at_a_free_port(self) -> HttpOptions:
        """Returns these options with a port on which nobody listens yet.

        Serve itself would share the port (SO_REUSEPORT) with the Serve of another local Ray, and the kernel would hand
        each request to one of the two.

        Raises:
            ResourceError: the port is taken, or this machine has no such address.
        """
        for port in range(self.port, self.port + (PORTS_TRIED if self.or_next else 1)):
            with socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what has ended is not in the way
                try:
                    probe.bind((self.host, port))
                except OSError as error:
                    reason = os.strerror(error.errno or 0)
                    continue
            return replace(self, port=port)
        raise ResourceError(f"cannot listen on {self.host}:{self.port} ({reason}); choose another with --http-port")
