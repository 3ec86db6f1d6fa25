"""The page in a real browser: Debian's Chromium, driven by Playwright, against `proxykd dashboard` as a process."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from actors.telemetry.event_types import RunFailed, Warned
from actors.telemetry.events import EventLog
from proxykd.runs.storage import write_json
from proxykd.study.studies import StudyDirectory
from services.dashboard.library import Library
from services.dashboard.pages import report_page
from tests.browser import chromium, watched_page
from tests.dashboard_server import Dashboard
from tests.made_up_study import SIZES, made_up
from tests.told_run import HOSTILE, many_events, tell_run

ROOT = Path(__file__).parents[2]
AXE = ROOT / "tests" / "axe" / "node_modules" / "axe-core" / "axe.min.js"
"""What judges accessibility: tests/axe/package-lock.json has its version and hash."""
SFT = {"learning_rate": 1e-3, "global_batch": 8}
VOCABULARY = 5000
POWER_LAW = [
    share / sum(r**-1.3 for r in range(1, VOCABULARY + 1)) for share in (r**-1.3 for r in range(1, VOCABULARY + 1))
]
"""A made-up distribution: shares by rank."""


def judge_in_both_themes(page: Page) -> None:
    """Nothing that axe-core finds serious or critical; what a theme changes are colours alone."""
    page.evaluate(AXE.read_text())
    for theme, only in (("light", {}), ("dark", {"runOnly": ["color-contrast"]})):
        page.evaluate("theme => (document.documentElement.dataset.theme = theme)", theme)
        found = page.evaluate("how => axe.run(document, how)", {"resultTypes": ["violations"], **only})["violations"]
        bad = [one for one in found if one["impact"] in ("serious", "critical")]
        told = [(one["id"], one["help"], [node["html"][:200] for node in one["nodes"][:3]]) for one in bad]
        assert told == [], (page.url[:200], theme)


def stub_proxy(page: Page) -> list[dict[str, Any]]:
    """A proxy of three adapters that all say POWER_LAW; returns what it was asked, as it comes."""
    asked: list[dict[str, Any]] = []
    top = [{"token": f" w{i}", "token_id": i, "logprob": math.log(share)} for i, share in enumerate(POWER_LAW[:20])]
    tail = sum(POWER_LAW[20:])
    least = -sum(p * math.log(p) for p in (*POWER_LAW[:20], tail))
    most = least + tail * math.log(VOCABULARY - 20)
    own = {"token": " it", "token_id": 40, "logprob": math.log(POWER_LAW[40]), "rank": 41}
    token = own | {"top": top, "tail_mass": tail, "entropy_at_least": least, "entropy_at_most": most}
    sequence = {"logprob": -6.0, "tokens": 1, "trust_weight": 0.5}
    cards = [{"name": f"x-{name}", "aliases": [name]} for name in ("base", "warmup", "r01")]

    def answer(route: Route) -> None:
        asked.append(route.request.post_data_json)
        results = [{"adapter": name, "tokens": [token], "sequence": sequence} for name in asked[-1]["adapters"]]
        route.fulfill(json={"results": results})

    page.route("**/v1/proxy/adapters", lambda route: route.fulfill(json={"default": "x-r01", "adapters": cards}))
    page.route("**/v1/proxy/distribution", answer)
    return asked


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
    expect(page.get_by_role("link", name=run.id)).to_be_visible(timeout=60_000)
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
    expect(page.get_by_text("The true KL went from 0.500 ± 0.010 to 0.440 ± 0.010.")).to_be_visible()
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


def test_a_run_leads_with_its_outcome_and_says_who_is_who(dashboard: Dashboard, page: Page):
    run = tell_run(dashboard.folder, name="outcome", sft=SFT)
    page.goto(f"{dashboard.url}#/runs/{run.id}")
    first = page.locator("main section:visible").first
    expect(first).to_contain_text("fell from 1.400 ± 0.010 to 0.900 ± 0.010 nats a token.")
    expect(first).to_contain_text("−0.1000 ± 0.0300 compared record by record, so this student is closer")
    dots = first.locator(".dot").evaluate_all("all => all.map((one) => parseFloat(one.style.left))")
    high = 1.05 * 1.41  # the largest with its error, and some air
    assert dots[:3] == pytest.approx([100 * kl / high for kl in (1.4, 1.0, 0.9)], abs=0.01)
    assert dots[3] == pytest.approx(50 - 50 / 1.2 * 0.1 / 0.16, abs=0.01)
    way = page.locator("main section:visible").nth(1)
    expect(way).to_contain_text("Proxymodel, 1 layer cut, 1.0 k parameters")
    expect(way).to_contain_text("Studentmodel, 2 layers cut, 500 parameters")
    page.goto(dashboard.url)
    expect(page.locator("tr", has_text=run.id)).to_contain_text(
        "true KL 1.400 → 0.900 ± 0.010; −0.1000 ± 0.0300 to SFT"
    )


def test_axes_take_in_what_is_known_of_errors_or_zero(dashboard: Dashboard, page: Page):
    run = tell_run(dashboard.folder, name="axes", rounds=3)
    page.goto(f"{dashboard.url}#/runs/{run.id}")
    expect(page.locator(".plot canvas").first).to_be_visible()
    page.wait_for_function("[...document.querySelectorAll('.plot')].every((one) => one.plot)")
    axes = page.locator("figure:has(.plot)").evaluate_all(
        "all => Object.fromEntries(all.map((one) => [one.querySelector('figcaption').firstChild.data,"
        " [one.querySelector('.plot').plot.scales.y.min, one.querySelector('.plot').plot.scales.y.max]]))"
    )

    def holds(title: str, *values: float) -> None:
        [(low, high)] = [axis for name, axis in axes.items() if name.startswith(title)]
        assert all(low <= value <= high for value in values), (title, low, high)

    holds("Held-out NLL", 3.45 - 0.1, 4.0 + 0.1)
    holds("Top-1 agreement", 0.0, 0.4)
    holds("What the round changed", -0.06, 0.0)
    holds("DPO accuracy", 0.5, 0.75 + 0.11)
    holds("DPO loss", 0.6, math.log(2))
    holds("NLL, mean", 0.0, 3.55)
    assert not any("DPO" in name for name in axes if name.startswith("NLL, mean"))
    expect(page.locator("details").first).to_contain_text("3.5500 ± 0.1000")


def test_words_signs_and_shares_are_those_of_people(dashboard: Dashboard, page: Page):
    run = tell_run(dashboard.folder, name="words", sft=SFT)
    EventLog(run).emit(Warned("round 1: NLL 3.6 -> 3.5 (-0.1 nats)"))
    page.goto(f"{dashboard.url}#/runs/{run.id}")
    expect(page.get_by_text("NLL 3.6 → 3.5 (−0.1 nats)")).to_be_visible()
    told = page.locator("main").inner_text()
    for absent in ("engine to trainer", "margin before step 1", "e+0", "undefined", "null", "NaN"):
        assert absent not in told
    assert re.search(r"(?<![\w-])-\d", told) is None
    assert told.count("log p a token") == 1  # NLL is explained once
    assert page.locator("#link").inner_text() == ""  # nothing is at work
    empty = page.locator("table").evaluate_all(
        "all => all.flatMap((one) => [...one.rows[0].cells].filter((_, i) => one.rows.length > 1"
        " && [...one.rows].slice(1).every((row) => !row.cells[i].textContent)).map((cell) => cell.textContent))"
    )
    assert empty == []
    page.goto(f"{dashboard.url}#/runs/{run.id}/rounds/1")
    numbers = page.locator("section", has_text="In numbers")
    expect(numbers).to_contain_text("largest margin before the first step (must be 0: the policy is its reference)0")
    expect(numbers).to_contain_text("engine and trainer differ on the same tokens, on average, by0.000010 nats")
    expect(numbers).to_contain_text("DPO accuracy after the round75.0 % (60.9 % to 85.2 %)")


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
    log.beat(1)
    page.goto(f"{dashboard.url}#/runs/{run.id}")
    expect(page.locator("#link")).to_have_text("live")
    log.emit(Warned("before the loss"))
    expect(page.get_by_text("before the loss")).to_be_visible()
    dashboard.kill()
    expect(page.locator("#link")).to_contain_text("connection lost")
    log.emit(Warned("while it was away"))
    log.beat(1)
    dashboard.start()
    expect(page.locator("#link")).to_have_text("live", timeout=60_000)
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


def test_what_stands_around_every_prompt_is_folded_and_colours_have_a_legend(dashboard: Dashboard, page: Page):
    run = tell_run(dashboard.folder, name="folded")
    page.goto(f"{dashboard.url}#/runs/{run.id}/rounds/1")
    prompts = page.locator(".pair .text-block")
    expect(prompts.first).to_have_text(re.compile(r"^Say \d+\.$"))
    page.get_by_text("What stands around every prompt").click()
    expect(page.locator("details .text-block")).to_have_text("<|user|> the prompt<|end|> <|assistant|>")
    expect(page.locator(".colours")).to_contain_text("−1.50 nats or less: unlikelier")
    page.get_by_label("colour by").select_option("after")
    expect(page.locator(".colours")).to_contain_text("0.2 % or less likely")


def test_the_explorer_without_a_proxy_says_how_to_start_one(dashboard: Dashboard, page: Page):
    run = tell_run(dashboard.folder, name="alone")
    page.goto(f"{dashboard.url}#/runs/{run.id}/explore")
    expect(page.get_by_text(f"proxykd serve {run.root}")).to_be_visible()
    expect(page.get_by_role("alert")).to_have_count(0)


def test_the_explorer_begins_with_an_example_and_tempers_every_bar(dashboard: Dashboard, page: Page):
    run = tell_run(dashboard.folder, name="explorer")
    asked = stub_proxy(page)
    page.goto(f"{dashboard.url}#/runs/{run.id}/explore")
    expect(page.get_by_label("prompt")).to_have_value("Say 0.")
    boxes = page.get_by_role("checkbox")
    assert [box.is_checked() for box in boxes.all()] == [True, False, True]
    boxes.nth(1).check()
    page.get_by_role("button", name="Ask the proxy").click()
    expect(page.get_by_text("The text says “·it” here")).to_be_visible()
    assert asked[0]["adapters"] == ["x-base", "x-warmup", "x-r01"]  # not as they were pressed
    for temperature in (1.0, 0.5, 2.0):
        page.get_by_role("slider").fill(str(temperature))
        widths = (
            page.locator(".next")
            .first.locator(".meter span")
            .evaluate_all("all => all.map((one) => parseFloat(one.style.width) / 100)")
        )
        assert sum(widths) == pytest.approx(1.0, abs=1e-5)
        weights = [p ** (1 / temperature) for p in POWER_LAW]
        known = [*weights[:20], weights[40]]  # the text's own token is none of the likeliest, and not in the tail
        expected = [weight / sum(weights) for weight in known]
        assert widths[:-1] == pytest.approx(expected, rel=0.05)
        assert widths[-1] == pytest.approx(1 - sum(expected), rel=0.05 if temperature >= 1 else 0.2)
    exact = page.locator(".next").first.locator(".meter span").last
    page.get_by_role("slider").fill("1")
    assert float(exact.evaluate("one => parseFloat(one.style.width)")) == pytest.approx(
        100 * (sum(POWER_LAW[20:]) - POWER_LAW[40]), abs=1e-3
    )


def test_a_wrong_key_is_told_so(dashboard: Dashboard, page: Page):
    tell_run(dashboard.folder, name="locked")

    def guard(route: Route) -> None:
        if route.request.headers.get("authorization") == "Bearer right":
            route.continue_()
        else:
            route.fulfill(status=401, json={"error": {"message": "no"}})

    page.route("**/v1/**", guard)
    page.goto(dashboard.url)
    field = page.get_by_role("textbox", name="API key")
    expect(page.get_by_text("does not know that key")).to_be_hidden()
    field.fill("wrong")
    field.press("Enter")
    expect(page.get_by_text("does not know that key")).to_be_visible()
    field.fill("right")
    field.press("Enter")
    expect(page.get_by_role("link", name="locked")).to_be_visible(timeout=60_000)


def test_axe_finds_nothing_serious_on_any_page_in_either_theme(dashboard: Dashboard, page: Page, tmp_path: Path):
    if not AXE.exists():
        pytest.skip(f"no axe-core: npm ci --prefix {AXE.parents[2].relative_to(ROOT)}")
    run = tell_run(dashboard.folder, name="axe", sft=SFT)
    begun = tell_run(dashboard.folder, name="axe-begun", until="align-01")
    log = EventLog(begun)
    log.stage("align", 2)
    log.progress(1, 8, "steps", {"nll": 3.5})
    log.beat(1)
    EventLog(begun).emit(Warned("something to know"))
    study = StudyDirectory(dashboard.folder / "axe-study")
    study.root.mkdir()
    (study.root / "study.json").write_text("{}")
    write_json(study.report, made_up(reference="black_box_kd", sizes=SIZES).model_dump())
    file = tmp_path / "report.html"
    file.write_text(report_page(Library.at(dashboard.folder), run.id))
    views = [
        "",
        f"runs/{begun.id}",
        f"runs/{run.id}/rounds/1",
        f"runs/{run.id}/explore",
        "studies/axe-study",
        "nowhere",
    ]
    for address in (*(f"{dashboard.url}#/{view}" for view in views), file.as_uri()):
        page.goto("about:blank")
        page.goto(address)
        expect(page.locator("main h1, main [role=alert]").first).to_be_visible()
        judge_in_both_themes(page)
    stub_proxy(page)
    page.goto(f"{dashboard.url}#/runs/{run.id}/explore")
    page.get_by_role("button", name="Ask the proxy").click()
    expect(page.locator(".next").first).to_be_visible()
    judge_in_both_themes(page)
    page.evaluate("document.getElementById('key').showModal()")
    judge_in_both_themes(page)


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
    for address in ("", f"#/runs/{run.id}", f"#/runs/{run.id}/rounds/1", f"#/runs/{run.id}/explore"):
        page.goto("about:blank")
        page.goto(f"{dashboard.url}{address}")
        expect(page.locator("main h1")).to_be_visible()
        page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        beyond = "all => all.filter((one) => one.scrollWidth > one.clientWidth).map((one) => one.ariaLabel)"
        assert page.locator(".scroll").evaluate_all(beyond) == []
    page.goto(dashboard.url)
    row = page.get_by_role("row", name=run.id)
    for kept in ("finished", "NLL 4.000 → 4.000 ± 0.100"):
        expect(row.get_by_text(kept)).to_be_in_viewport()
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
