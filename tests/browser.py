"""Debian's Chromium, headless, driven by Playwright; a page that did what its policy forbids fails its test."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

NO_CHROMIUM = "no chromium on this machine: apt-get install chromium"
"""CI installs it (.ci/run)."""
HARMLESS = ("Failed to load resource", "ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED_ENCODING")
"""What Chromium says of a server that a test has killed, or that answers 404 as it should."""
expect.set_options(timeout=30_000)  # beside other tests a page takes its time


@contextmanager
def chromium() -> Iterator[Browser]:
    executable = shutil.which("chromium")
    if executable is None:
        pytest.skip(NO_CHROMIUM)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def watched_page(browser: Browser) -> Iterator[Page]:
    """A fresh page. At its end: no error in its console, no exception, nothing asked of any other host."""
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: None if _is_ours(request.url) else errors.append(f"asked {request.url}"))
    yield page
    page.close()
    assert [error for error in errors if not any(known in error for known in HARMLESS)] == []


def _is_ours(url: str) -> bool:
    return url.startswith(("http://127.0.0.1:", "data:", "file:", "blob:"))
