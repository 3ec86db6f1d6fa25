"""Who may ask, and how large a request may be: an ASGI middleware in front of every route."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
from pathlib import Path

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proxykd.errors import ConfigError
from services.access.refusals import error_body

KEYS_VARIABLE = "PROXYKD_API_KEYS"
OPEN_ROUTES = ("/health", "/healthz", "/readyz")
PAGE, DOCS = "/dashboard", "/docs"
"""The pages' own files hold no data: what they show they ask for with a key."""
SHORTEST_KEY = 16
READING = ("GET", "HEAD", "OPTIONS")
"""Methods that change nothing; a browser shows their answers to no other site."""


def key_digests(file: str | None) -> tuple[str, ...]:
    """SHA-256 of each API key, from a file (one a line) or PROXYKD_API_KEYS (by commas). Only digests travel.

    Raises:
        ConfigError: a key is too short to be one, or the file cannot be read. The message never holds a key.
    """
    try:
        text = Path(file).read_text() if file else os.environ.get(KEYS_VARIABLE, "").replace(",", "\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the API keys from {file}: {error}") from error
    keys = [line.strip() for line in text.splitlines() if line.strip()]
    if any(len(key) < SHORTEST_KEY for key in keys):
        raise ConfigError(
            f"an API key in {file or KEYS_VARIABLE} has fewer than {SHORTEST_KEY} characters; make it longer"
        )
    if file and not keys:
        raise ConfigError(f"{file} holds no API key; write one a line")
    return tuple(hashlib.sha256(key.encode()).hexdigest() for key in keys)


def require_keys_beyond_loopback(host: str, digests: tuple[str, ...]) -> None:
    """Raises ConfigError where other machines could ask without a key."""
    if not is_loopback(host) and not digests:
        raise ConfigError(
            f"--http-host {host} is reachable from outside: set {KEYS_VARIABLE} or --api-keys, or bind to 127.0.0.1"
        )


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def misdirected(headers: Headers, method: str, host: str) -> JSONResponse | None:
    """The refusal of a request that a page of another site has sent here, by a name of its own for this address (421)
    or across sites (403); None where it names the address that `host` binds. Ports are not compared: tunnels have
    others.

    A wall in place of keys: a browser on this machine reaches loopback for whatever page it shows.
    """
    names = {host.lower(), "localhost"}
    named = _name_of(headers.get("host", ""))
    if named not in names:
        message = f"Host: {named[:100] or 'none'} is no name of this address ({', '.join(sorted(names))})"
        return JSONResponse(error_body(message, "invalid_request_error"), 421)
    origin = headers.get("origin")
    if origin is not None and method not in READING and _name_of(origin.partition("://")[2]) not in names:
        return JSONResponse(error_body(f"Origin: {origin[:100]} may not ask here", "invalid_request_error"), 403)
    return None


def _name_of(authority: str) -> str:
    """Of NAME, NAME:PORT, [ADDRESS] or [ADDRESS]:PORT."""
    if authority.startswith("["):
        return authority[1:].partition("]")[0].lower()
    return authority.partition(":")[0].removesuffix(".").lower()


class Guard:
    """Refuses requests without a key (401), where no keys are set those that name another host than `host` (421, 403),
    and bodies over the limit (413) before a route sees them."""

    def __init__(self, app: ASGIApp, key_digests: tuple[str, ...], max_body_bytes: int, host: str):
        self._app = app
        self._digests = key_digests
        self._limit = max_body_bytes
        self._host = host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if not self._digests and (refusal := misdirected(headers, scope["method"], self._host)) is not None:
            await refusal(scope, receive, send)
            return
        if not _is_open(scope) and not self._knows(headers.get("authorization", "")):
            body = error_body(
                "an API key is needed: Authorization: Bearer KEY", "authentication_error", code="invalid_api_key"
            )
            await JSONResponse(body, 401, {"WWW-Authenticate": "Bearer"})(scope, receive, send)
            return
        too_large = JSONResponse(error_body(f"the body is over {self._limit} bytes", "invalid_request_error"), 413)
        declared = headers.get("content-length", "0")
        if not declared.isdecimal() or int(declared[:20]) > self._limit:
            await too_large(scope, receive, send)
            return
        parts = await self._read(receive)
        if parts is None:
            await too_large(scope, receive, send)
            return
        pending = iter(parts)

        async def replay() -> Message:
            return next(pending, None) or await receive()

        await self._app(scope, replay, send)

    def _knows(self, authorization: str) -> bool:
        if not self._digests:
            return True
        scheme, _, key = authorization.partition(" ")
        offered = hashlib.sha256(key.strip().encode("latin-1", "replace")).hexdigest()
        # Every digest is compared, each in constant time.
        matches = [hmac.compare_digest(offered, digest) for digest in self._digests]
        return scheme.lower() == "bearer" and any(matches)

    async def _read(self, receive: Receive) -> list[Message] | None:
        """The whole body, or None where it grows over the limit (chunked bodies declare no length)."""
        parts, size = [], 0
        while True:
            part = await receive()
            parts.append(part)
            size += len(part.get("body", b""))
            if size > self._limit:
                return None
            if part["type"] != "http.request" or not part.get("more_body"):
                return parts


def _is_open(scope: Scope) -> bool:
    path = scope["path"].removeprefix(scope.get("root_path", "")).rstrip("/")
    return path in (*OPEN_ROUTES, PAGE, DOCS) or path.startswith((f"{PAGE}/", f"{DOCS}/"))
