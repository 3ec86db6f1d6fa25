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

    @property
    def address(self) -> str:
        """HOST:PORT as it stands in a URL."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def beside_others(self, run_id: str) -> HttpOptions:
        """Returns these options with the run's own prefix, as runs that share a cluster have."""
        return replace(self, prefix=f"/{run_id}")

    def at_a_free_port(self) -> HttpOptions:
        """Returns these options with a port on which nobody listens yet.

        Raises:
            ResourceError: the port is taken, or this machine has no such address.
        """
        options, claim = self.claim()
        claim.close()
        return options

    def claim(self) -> tuple[HttpOptions, socket.socket]:
        """Returns these options with a port on which nobody listens yet, for Serve, and what keeps it free until Serve
        listens there: while the socket is open, in whichever process, nobody else gets the port.

        Serve itself would share the port (SO_REUSEPORT) with the Serve of another local Ray, and the kernel would hand
        each request to one of the two. A socket that is bound and does not listen gets none of them.

        Raises:
            ResourceError: the port is taken, or this machine has no such address.
        """
        for port in range(self.port, self.port + (PORTS_TRIED if self.or_next else 1)):
            claim = socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET)
            claim.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what has ended is not in the way
            try:
                claim.bind((self.host, port))
            except OSError as error:
                claim.close()
                reason = os.strerror(error.errno or 0)
                continue
            claim.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
            claim.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            return replace(self, port=port), claim
        raise ResourceError(f"cannot listen on {self.address} ({reason}); choose another with --http-port")
