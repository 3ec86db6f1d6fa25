"""ops/nginx.conf before a real server of the routes' own guard: slow and oversized requests end there, the others pass."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import subprocess
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from services.access.keys import Guard

CONFIG = Path(__file__).parents[2] / "ops" / "nginx.conf"
HALF = b"POST /echo HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: text/plain\r\nContent-Length: 1000\r\n\r\nhalf"
SLOW_CLIENTS = 1500


def upstream() -> FastAPI:
    app = FastAPI()
    app.state.seen = 0
    app.add_middleware(Guard, key_digests=(), max_body_bytes=2**21, host="127.0.0.1")

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @app.post("/echo")
    async def echo(request: Request) -> dict[str, int]:
        app.state.seen += 1
        return {"bytes": len(await request.body())}

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def events():
            yield "data: one\n\n"
            await gate()
            yield "data: two\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    async def gate() -> None:
        import asyncio

        await asyncio.to_thread(app.state.go_on.wait, 20)

    app.state.go_on = threading.Event()
    return app


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def front(tmp_path_factory):
    """(URL of nginx, its port, the app behind it)."""
    if shutil.which("nginx", path="/usr/sbin:/usr/bin") is None:
        pytest.skip("no nginx on this machine: apt-get install nginx-light")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    folder, app = tmp_path_factory.mktemp("nginx"), upstream()
    behind, before = free_port(), free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=behind, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    text = CONFIG.read_text().replace("127.0.0.1:8000", f"127.0.0.1:{behind}")
    text = text.replace("listen 8080", f"listen 127.0.0.1:{before}")
    own = "user root;\n" if os.getuid() == 0 else ""  # whose workers may write to the test's folder
    own += f"pid {folder}/pid; error_log {folder}/error.log; daemon off;\n"
    for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"):
        text = text.replace("http {", f"http {{\n    {kind}_temp_path {folder}/{kind};", 1)
    (folder / "nginx.conf").write_text(own + text)
    nginx = subprocess.Popen(["/usr/sbin/nginx", "-c", str(folder / "nginx.conf"), "-p", str(folder)])
    try:
        url = f"http://127.0.0.1:{before}"
        wait_until(lambda: server.started and answers(url))
        yield url, before, app
    finally:
        nginx.terminate()
        nginx.wait(10)
        server.should_exit = True
        thread.join(10)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz").status_code == 200
    except httpx.HTTPError:
        return False


def wait_until(done) -> None:
    for _ in range(200):
        if done():
            return
        time.sleep(0.1)
    raise AssertionError("nothing answers")


def test_bodies_that_never_end_take_no_place_from_others(front):
    url, port, app = front
    with ExitStack() as stack:
        for _ in range(SLOW_CLIENTS):
            slow = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            slow.sendall(HALF)
        assert httpx.get(f"{url}/healthz", timeout=10).json() == {"status": "alive"}
        assert httpx.post(f"{url}/echo", content=b"whole", timeout=10).json() == {"bytes": 5}
        assert app.state.seen == 1, "none of the halves came through"


def test_a_slow_body_is_refused_in_the_shape_of_every_error(front):
    _, port, _ = front
    with socket.create_connection(("127.0.0.1", port)) as slow:
        slow.sendall(HALF)
        slow.settimeout(30)
        try:
            told = slow.recv(4096)
        except ConnectionResetError:
            told = b""
    assert told == b"" or (b" 408 " in told and b"did not come within" in told)


def test_what_is_too_large_is_refused_as_json(front):
    url, _, app = front
    before = app.state.seen
    headers = httpx.get(f"{url}/healthz", headers={"x-much": "x" * 200_000})
    assert (headers.status_code, headers.json()["error"]["message"]) == (431, "a header is over 16 KiB")
    body = httpx.post(f"{url}/echo", content=b"x" * (2**21 + 1))
    assert (body.status_code, body.json()["error"]["message"]) == (413, "the body is over 2 MiB")
    assert httpx.post(f"{url}/echo", content=b"x" * 2**21).json() == {"bytes": 2**21}
    assert app.state.seen == before + 1


def test_the_clients_host_reaches_the_guard(front):
    """Else routes without keys would answer whomever nginx is open to."""
    url, _, _ = front
    assert httpx.get(f"{url}/healthz", headers={"host": "proxy.example.com"}).status_code == 421


def test_events_come_as_they_are_made(front):
    url, _, app = front
    with httpx.stream("GET", f"{url}/stream", timeout=20) as answer:
        parts = answer.iter_text()
        assert next(parts) == "data: one\n\n"
        app.state.go_on.set()
        assert "".join(parts) == "data: two\n\n"


def test_a_service_that_is_away_is_told_as_json(front, tmp_path):  # `front` has looked for nginx
    gone = free_port()
    text = CONFIG.read_text().replace("127.0.0.1:8000", f"127.0.0.1:{gone}")
    before = free_port()
    text = text.replace("listen 8080", f"listen 127.0.0.1:{before}")
    (tmp_path / "nginx.conf").write_text(f"pid {tmp_path}/pid; error_log {tmp_path}/error.log; daemon off;\n" + text)
    nginx = subprocess.Popen(["/usr/sbin/nginx", "-c", str(tmp_path / "nginx.conf"), "-p", str(tmp_path)])
    try:
        wait_until(lambda: answered(before))
        away = httpx.get(f"http://127.0.0.1:{before}/healthz")
        assert (away.status_code, away.headers["retry-after"]) == (503, "10")
        assert away.json()["error"]["type"] == "server_error"
    finally:
        nginx.terminate()
        nginx.wait(10)


def answered(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
