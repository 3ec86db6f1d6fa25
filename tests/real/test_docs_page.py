"""/docs in a real browser, in front of routes that ask for a key."""

from __future__ import annotations

import hashlib
import threading

import pytest
import uvicorn
from playwright.sync_api import expect

from proxykd.runs.run_directory import RunDirectory
from services.dashboard.redis_of_run import redis_of_config
from services.rest.api import build_app
from services.rest.engine_service import ServiceSpec
from services.rest.proxy_service import ProxyService
from tests.browser import chromium, watched_page
from tests.object_store import free_port
from tests.ray_nodes import wait_for
from tests.small_run import run_config

KEY = "a-key-of-some-length"


@pytest.fixture
def url(tiny, tmp_path):
    """Where the front answers; it has no engine."""
    run = RunDirectory.create(run_config(str(tiny), str(tmp_path)))
    run.models.mkdir(parents=True)
    (run.models / "proxy").symlink_to(tiny)
    digests = (hashlib.sha256(KEY.encode()).hexdigest(),)
    spec = ServiceSpec(str(run.root), "base", 20, beside_run=False, shares_cores=True, key_digests=digests)
    app = build_app(ProxyService(spec, lambda: None), redis_of_config)
    server = uvicorn.Server(uvicorn.Config(app, port=free_port(), log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_for(lambda: server.started, 60, "the front")
    yield f"http://127.0.0.1:{server.config.port}"
    server.should_exit = True
    thread.join()


def test_the_docs_ask_for_a_key_and_use_it(url):
    with chromium() as browser, watched_page(browser) as page:
        page.goto(f"{url}/docs")
        told, route = page.locator("#told"), page.locator("#operations-openai-models_v1_models_get")
        expect(told).to_have_text("The routes ask for a key.")
        for given, shown in (("not-the-key-of-this-place", 0), (KEY, 1)):
            page.get_by_label("API key").fill(given)
            with page.expect_response("**/openapi.json"):
                page.get_by_role("button", name="Use it").click()
            expect(route).to_have_count(shown)
            expect(told).to_have_text("" if shown else "The routes ask for a key.")
        page.reload()  # the tab keeps it
        route.click()
        route.get_by_role("button", name="Try it out").click()
        route.get_by_role("button", name="Execute").click()
        expect(route.locator(".live-responses-table tbody .response-col_status")).to_contain_text("200")
        assert KEY not in page.url
