"""Whom routes without keys answer: requests that name the address that is bound, and no page of another site."""

from __future__ import annotations

import hashlib

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from actors.cluster.http_options import HttpOptions
from proxykd.errors import ResourceError
from services.access.keys import Guard

KEY = "a key of more than sixteen characters"


def client(host="127.0.0.1", keys=()):
    app = FastAPI()
    app.add_middleware(Guard, key_digests=keys, max_body_bytes=1000, host=host)

    @app.post("/asked")
    @app.get("/asked")
    def asked() -> dict[str, str]:
        return {"answer": "here"}

    return TestClient(app, "http://127.0.0.1")


@pytest.mark.parametrize("named", ["127.0.0.1", "127.0.0.1:8000", "localhost", "LocalHost:9000", "localhost.:80"])
def test_names_of_the_bound_address_are_answered_by_any_port(named):
    """A tunnel's end has another port than the service."""
    assert client().get("/asked", headers={"host": named}).status_code == 200


@pytest.mark.parametrize(
    "named",
    [
        "evil.com",
        "evil.com:8000",
        "127.0.0.1.evil.com",
        "localhost.evil.com",
        "127.0.0.2",
        "[::1]:8000",
        "",
        "[",
        "a@b",
    ],
)
@pytest.mark.parametrize("path", ["/asked", "/dashboard/", "/healthz", "/nowhere"])
def test_a_name_that_dns_has_rebound_is_answered_on_no_route(named, path):
    refused = client().get(path, headers={"host": named})
    assert refused.status_code == 421
    assert "is no name of this address (127.0.0.1, localhost)" in refused.json()["error"]["message"]


def test_an_ipv6_address_is_named_in_brackets():
    assert client("::1").get("/asked", headers={"host": "[::1]:8000"}).status_code == 200
    assert client("::1").get("/asked", headers={"host": "[::1]"}).status_code == 200
    assert client("::1").get("/asked", headers={"host": "127.0.0.1"}).status_code == 421


@pytest.mark.parametrize("origin", ["https://evil.com", "null", "http://127.0.0.1.evil.com:8000", "localhost"])
def test_a_page_of_another_site_may_not_post(origin):
    refused = client().post("/asked", headers={"origin": origin})
    assert refused.status_code == 403
    assert "may not ask here" in refused.json()["error"]["message"]
    assert client().get("/asked", headers={"origin": origin}).status_code == 200, "whose answer no browser shows it"


@pytest.mark.parametrize("origin", ["http://127.0.0.1:8000", "http://localhost:3000"])
def test_the_services_own_page_may(origin):
    assert client().post("/asked", headers={"origin": origin}).status_code == 200


def test_with_keys_the_key_is_the_wall_and_load_balancers_pass():
    asked = client("0.0.0.0", (hashlib.sha256(KEY.encode()).hexdigest(),))
    named = {"host": "proxy.example.com", "origin": "https://example.com"}
    assert asked.post("/asked", headers=named).status_code == 401
    assert asked.post("/asked", headers={**named, "authorization": f"Bearer {KEY}"}).status_code == 200


def test_an_ipv6_address_stands_in_brackets():
    assert HttpOptions("::1", 8000).address == "[::1]:8000"
    assert HttpOptions().address == "127.0.0.1:8000"
    with pytest.raises(ResourceError, match=r"cannot listen on \[2001:db8::1\]:8000"):
        HttpOptions("2001:db8::1", 8000).claim()
