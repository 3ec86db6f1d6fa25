"""A real S3 protocol server on this machine, and a bucket in it."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

REGION = "us-east-1"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def s3_server() -> Iterator[str]:
    """Yields the server's URL. Clients of this process and of those that it starts find it by the environment."""
    from moto.server import ThreadedMotoServer

    port = free_port()
    url = f"http://127.0.0.1:{port}"
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it would print every request
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", url)
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", REGION)
        server: Any = ThreadedMotoServer(port=port, verbose=False)
        server.start()
        try:
            yield url
        finally:
            server.stop()


@contextmanager
def slowed(url: str, seconds: float) -> Iterator[None]:
    """The same server, each piece of whose traffic arrives `seconds` late in each direction."""
    target = url.rpartition(":")[2]
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
        threading.Thread(target=_relay, args=(listener, int(target), seconds), daemon=True).start()
        yield


def _relay(listener: socket.socket, port: int, delay_s: float) -> None:
    while True:
        try:
            client, _ = listener.accept()
        except OSError:  # closed
            return
        server = socket.create_connection(("127.0.0.1", port))
        for source, sink in ((client, server), (server, client)):
            threading.Thread(target=_pump, args=(source, sink, delay_s), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket, delay_s: float) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 20):
            time.sleep(delay_s)
            sink.sendall(data)
    for end in (source, sink):
        end.close()


def new_bucket() -> str:
    """The s3:// URL of an empty bucket."""
    import boto3

    name = f"runs-{uuid.uuid4().hex[:12]}"
    boto3.client("s3").create_bucket(Bucket=name)
    return f"s3://{name}"
