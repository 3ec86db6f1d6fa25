"""`proxykd chat --page` in a real browser: columns, streaming, stopping, errors; on a phone, and judged by axe-core."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import uvicorn
from playwright.sync_api import Browser, Page, expect

from proxykd.models.speaker import Sampling
from services.chat.page import chat_app
from tests.browser import chromium, watched_page
from tests.object_store import free_port
from tests.ray_nodes import wait_for
from tests.real.test_dashboard_page import AXE, judge_in_both_themes
from tests.scripted_speaker import NEVER_ENDING, ScriptedModel, scripted_speaker

HOSTILE = "<img src=x onerror=alert(1)> & 日本\n  <b>two</b>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with watched_page(browser) as fresh:
        yield fresh


@contextmanager
def served(**replies: tuple[str, ...]) -> Iterator[tuple[str, dict[str, ScriptedModel]]]:
    """The page's address, and what stands behind each model's name."""
    made = {name: scripted_speaker(*said, context=10**9, pause_s=0.01) for name, said in replies.items()}
    speakers = {name: speaker for name, (speaker, _) in made.items()}
    app = chat_app("a-run", speakers, Sampling(max_tokens=400), "127.0.0.1")
    server = uvicorn.Server(uvicorn.Config(app, port=free_port(), log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_for(lambda: server.started, 60, "the page")
    yield f"http://127.0.0.1:{server.config.port}/", {name: model for name, (_, model) in made.items()}
    server.should_exit = True
    thread.join()


def ask(page: Page, text: str) -> None:
    page.get_by_label("Prompt to all of them").fill(text)
    page.get_by_label("Prompt to all of them").press("Enter")


def log(page: Page, name: str):
    return page.get_by_role("log", name=f"Conversation with {name}")


def test_every_model_replies_in_its_column_and_goes_on_with_its_own_words(page: Page):
    with served(student=("red", "blue"), base=(HOSTILE, "tree")) as (url, models):
        page.goto(url)
        expect(page.get_by_role("heading", name="student")).to_be_visible()
        expect(page.get_by_text("the student's model as it began")).to_be_visible()
        page.get_by_label("System message").fill("be brief")
        ask(page, "one")
        expect(log(page, "student")).to_contain_text("red")
        expect(log(page, "base").locator(".replied")).to_have_text(HOSTILE, use_inner_text=True)
        expect(page.get_by_role("button", name="Send")).to_be_enabled()
        ask(page, "two")
        expect(log(page, "student")).to_contain_text("blue")
        expect(page.get_by_role("button", name="Send")).to_be_enabled()
        system, turn = "<|im_start|>system\nbe brief<|im_end|>\n", "<|im_start|>{}\n{}<|im_end|>\n".format
        begun = system + turn("user", "one") + turn("assistant", "red") + turn("user", "two")
        assert models["student"].heard[1] == f"{begun}<|im_start|>assistant\n"
        assert HOSTILE in models["base"].heard[1]
        page.get_by_role("button", name="New conversation").click()
        expect(log(page, "student")).to_be_empty()


def test_a_stopped_reply_stands_as_far_as_it_came(page: Page):
    with served(student=(NEVER_ENDING, "two")) as (url, models):
        page.goto(url)
        ask(page, "one")
        expect(log(page, "student")).to_contain_text("no end no end")
        page.get_by_role("button", name="Stop").click()
        expect(log(page, "student").locator(".told")).to_contain_text("stopped")
        expect(page.get_by_role("button", name="Send")).to_be_enabled()
        said = log(page, "student").locator(".replied").text_content()
        ask(page, "more")
        expect(log(page, "student").locator(".replied").nth(1)).to_have_text("two")
        assert f"{said}<|im_end|>" in models["student"].heard[1]
        expect(page.get_by_role("alert")).to_be_hidden()


def test_a_refusal_is_told_and_the_prompt_is_kept(page: Page):
    with served(student=("red",)) as (url, models):
        page.goto(url)
        models_own = models["student"]
        page.get_by_label("Temperature").evaluate("field => { field.max = ''; field.value = 7; }")
        ask(page, "one")
        expect(page.get_by_role("alert")).to_contain_text("temperature")
        expect(page.get_by_label("Prompt to all of them")).to_have_value("one")
        expect(log(page, "student")).to_be_empty()
        assert models_own.heard == []


def test_a_server_that_is_gone_is_told(page: Page):
    with served(student=("red",)) as (url, _):
        page.goto(url)
        expect(page.get_by_role("heading", name="student")).to_be_visible()
    ask(page, "one")
    expect(page.get_by_role("alert")).to_contain_text("Failed to fetch")


@pytest.mark.skipif(not AXE.exists(), reason="no axe-core: npm ci --prefix tests/axe")
@pytest.mark.parametrize("width", [1200, 390])
def test_the_page_is_accessible_and_as_wide_as_the_screen(page: Page, width: int):
    page.set_viewport_size({"width": width, "height": 800})
    with served(student=("the cat " * 40,), sft=("dog",), proxy=("\n".join(["line"] * 30),), base=("x" * 200,)) as (
        url,
        _,
    ):
        page.goto(url)
        ask(page, "one two three " * 10)
        expect(page.get_by_role("button", name="Send")).to_be_enabled(timeout=120_000)
        expect(log(page, "proxy")).to_contain_text("line")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        judge_in_both_themes(page)
