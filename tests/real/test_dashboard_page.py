"""The page in a real browser: Debian's Chromium, driven by Playwright, against `proxykd dashboard` as a process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from actors.telemetry.event_types import RunFailed, Warned
from actors.telemetry.events import EventLog
from services.dashboard.library import Library
from services.dashboard.pages import report_page
from tests.browser import chromium, watched_page
from tests.dashboard_server import Dashboard
from tests.told_run import HOSTILE, many_events, tell_run


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    server = Dashboard(tmp_path_factory.mktemp("runs"))
    yield server
    server.kill()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with watched_page(browser) as fresh:
        yield fresh


def test_an_empty_folder_says_how_to_begin_and_a_run_appears_by_itself(dashboard: Dashboard, page: Page):
    page.goto(dashboard.url)
    expect(page.get_by_text("No run lies here yet.")).to_be_visible()
    run = tell_run(dashboard.folder, name="first")
    expect(page.get_by_role("link", name=run.id)).to_be_visible(timeout=15_000)
    page.get_by_role("link", name=run.id).click()
    expect(page.get_by_role("heading", name=run.id)).to_be_visible()


def test_a_finished_run_shows_every_part_of_its_story(dashboard: Dashboard, page: Page):
    run = tell_run(dashboard.folder, name="whole", rounds=3)
    page.goto(f"{dashboard.url}#/runs/{run.id}")
    for title in (
        "The way from text to student",
        "Does the proxy come closer to the teacher?",
        "What the rounds did",
        "How far each record is trusted",
        "What the student learned from",
        "The student against its start",
        "Where the time went",
        "The corpus",
        "Events",
    ):
        expect(page.get_by_role("heading", name=title)).to_be_visible()
    assert page.locator(".pipeline li.done").count() == 9
    expect(page.get_by_text("The true KL went from 0.500 to 0.440.")).to_be_visible()
    assert page.locator(".plot canvas").count() > 8


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "8 validation, 8 test, 8 warmup, 8 alignment, 8 distillation."),
        ({"whole_text": True, "training_limit": 8}, "8 validation, 8 test, 8 training."),
    ],
    ids=["split", "whole text"],
)
def test_the_corpus_is_told_by_the_slices_that_the_run_has(dashboard: Dashboard, page: Page, settings: dict, told: str):
    run = tell_run(dashboard.folder, corpus={"path": "none", **settings})
    page.goto(f"{dashboard.url}#/runs/{run.id}")
    expect(page.get_by_text(f"40 records, 400 completion tokens: {told}")).to_be_visible()
    expect(page.get_by_text("Left out by corpus.training_limit: 7.")).to_have_count(1 if settings else 0)
    bars = page.get_by_role("group", name="records by trust weight").get_by_role("button", disabled=False)
    bars.first.press("Enter")
    expect(page.locator(".text-block").first).to_be_visible()


def test_text_of_models_is_shown_and_never_run(dashboard: Dashboard, page: Page):
    run = tell_run(dashboard.folder, name="hostile")
    page.goto(f"{dashboard.url}#/runs/{run.id}")
    bars = page.get_by_role("group", name="records by trust weight").get_by_role("button", disabled=False)
    bars.first.press("Enter")  # the least likely completion is the hostile one
    expect(page.locator(".text-block", has_text=HOSTILE)).to_be_visible()
    page.goto(f"{dashboard.url}#/runs/{run.id}/rounds/1")
    expect(page.locator(".tokens", has_text=HOSTILE).first).to_be_visible()
    assert page.title().endswith("proxykd")
    assert page.locator("main script, main img").count() == 0


def test_progress_and_events_arrive_live(dashboard: Dashboard, page: Page):
    run = tell_run(dashboard.folder, name="live", until="warmup")
    log = EventLog(run)
    log.stage("align", 1)
    log.progress(1, 8, "steps", {"nll": 3.5})
    log.beat(1)
    page.goto(f"{dashboard.url}#/runs/{run.id}")
    expect(page.get_by_role("heading", name="Now: align 1")).to_be_visible()
    expect(page.locator("#link")).to_have_text("live")
    for step in range(2, 7):
        log.progress(step, 8, "steps", {"nll": 3.5 - 0.1 * step})
    log.beat(1)
    expect(page.get_by_text("6 of 8 steps")).to_be_visible()
    expect(page.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "75")
    log.emit(Warned("something to know"))
    expect(page.get_by_text("warning: something to know")).to_be_visible()
    log.close()


def test_a_killed_server_is_found_again_and_no_event_is_lost_or_doubled(dashboard: Dashboard, page: Page):
    run = tell_run(dashboard.folder, name="again", until="warmup")
    log = EventLog(run)
    page.goto(f"{dashboard.url}#/runs/{run.id}")
    expect(page.locator("#link")).to_have_text("live")
    log.emit(Warned("before the loss"))
    expect(page.get_by_text("before the loss")).to_be_visible()
    dashboard.kill()
    expect(page.locator("#link")).to_contain_text("connection lost")
    log.emit(Warned("while it was away"))
    dashboard.start()
    expect(page.locator("#link")).to_have_text("live", timeout=20_000)
    log.emit(Warned("after it"))
    expect(page.get_by_text("after it")).to_be_visible()
    for message in ("before the loss", "while it was away", "after it"):
        assert page.locator(".log li", has_text=message).count() == 1


def test_sixteen_rounds_and_a_hundred_thousand_events_open_at_their_end(dashboard: Dashboard, page: Page):
    run = tell_run(dashboard.folder, name="long", rounds=16)
    many_events(run, 100_000)
    page.goto(f"{dashboard.url}#/runs/{run.id}")
    expect(page.get_by_text("number 100000")).to_be_visible()
    assert page.locator(".log li").count() == 50
    assert page.locator(".pipeline li").count() == 22
    page.get_by_role("button", name="Older events").click()
    expect(page.locator(".log li")).to_have_count(150)


def test_a_failed_run_says_why(dashboard: Dashboard, page: Page):
    run = tell_run(dashboard.folder, name="failed", until="align-01")
    EventLog(run).emit(RunFailed("GateError", "parity gate: engine and trainer differ"))
    page.goto(f"{dashboard.url}#/runs/{run.id}")
    expect(page.get_by_role("alert")).to_contain_text("parity gate: engine and trainer differ")
    expect(page.locator(".title .state")).to_have_text("failed")


def test_a_half_written_run_is_in_the_list_and_says_what_is_torn(dashboard: Dashboard, page: Page):
    run = tell_run(dashboard.folder, name="torn")
    (run.stages / "warmup.json").write_text("{")
    page.goto(dashboard.url)
    expect(page.locator("tr", has_text=run.id)).to_contain_text("warmup.json is torn")
    page.goto(f"{dashboard.url}#/runs/{run.id}")
    expect(page.get_by_role("alert")).to_contain_text("warmup.json is torn")


def test_a_rounds_pairs_are_searched_filtered_and_coloured(dashboard: Dashboard, page: Page):
    run = tell_run(dashboard.folder, name="pairs")
    page.goto(f"{dashboard.url}#/runs/{run.id}/rounds/1")
    expect(page.locator(".pair")).to_have_count(10)
    page.get_by_role("button", name="More pairs").click()
    expect(page.locator(".pair")).to_have_count(12)
    page.get_by_role("checkbox").check()
    expect(page.locator(".pair").filter(has_not_text="(the wrong way)")).to_have_count(0)
    expect(page.locator(".pair").first).to_be_visible()
    page.get_by_role("checkbox").uncheck()
    page.get_by_role("searchbox").fill("say 7.")
    expect(page.locator(".pair")).to_have_count(1)
    token = page.locator(".pair .tokens span").first
    by_change = token.get_attribute("style")
    page.get_by_label("colour by").select_option("before")
    expect(token).not_to_have_attribute("style", by_change or "")


def test_the_keyboard_goes_everywhere(dashboard: Dashboard, page: Page):
    run = tell_run(dashboard.folder, name="keys")
    page.goto(f"{dashboard.url}#/runs/{run.id}")
    expect(page.get_by_role("heading", name=run.id)).to_be_visible()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    bars = page.get_by_role("group", name="records by trust weight").get_by_role("button", disabled=False)
    bars.first.focus()
    page.keyboard.press("Enter")
    expect(bars.first).to_have_attribute("aria-pressed", "true")
    expect(page.locator("section .pair").first).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_sideways_scrolling_in_either_theme(dashboard: Dashboard, page: Page, scheme: str):
    run = tell_run(dashboard.folder, name=f"phone-{scheme}")
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    page.set_viewport_size({"width": 360, "height": 740})
    for address in ("", f"#/runs/{run.id}", f"#/runs/{run.id}/rounds/1"):
        page.goto(f"{dashboard.url}{address}")
        expect(page.locator("main h1")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert dark == {"light": "rgb(252, 252, 251)", "dark": "rgb(17, 19, 22)"}[scheme]


def test_the_report_opens_as_a_file_without_a_server(dashboard: Dashboard, page: Page, tmp_path: Path):
    run = tell_run(dashboard.folder, name="mailed")
    file = tmp_path / "report.html"
    file.write_text(report_page(Library.at(dashboard.folder), run.id))
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    expect(page.get_by_role("heading", name=run.id)).to_be_visible()
    expect(page.get_by_role("heading", name="Does the proxy come closer to the teacher?")).to_be_visible()
    assert page.locator(".plot canvas").count() > 5
    page.get_by_role("link", name="round 1").click()
    expect(page.locator(".pair").first).to_be_visible()
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
