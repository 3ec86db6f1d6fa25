"""The docs as a reader follows them: links and anchors that lead somewhere, a README of one sitting, pages that exist."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)|\b(?:src|href)=\"([^\"]+)\"")
MOST_LINES = 150
PLACEHOLDERS = {"NAME.js", "NAME.md", "NAME.py", "NAME.jinja"}
"""Of whatever is to be added."""
NAMED_FILE = re.compile(r"(?<![\w./*-])(?:\.\./)?((?:[\w.-]+/)+[\w-]+\.(?:py|js|jinja|yaml))\b")
"""A file with the folder that it lies in. (Of other kinds pages name what runs hold.)"""
ABSENT = "DESIGN" + ".md"
"""A page that the repository does not hold: docs/design.md stands for it."""


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@cache
def prose(page: Path) -> str:
    """Its text without code, in which brackets are no links."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^ {4}(?![-*] ).*$", "", text, flags=re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "", text)


@cache
def anchors(page: Path) -> set[str]:
    """What GitHub calls a page's headings: lower case, hyphens for spaces, punctuation left out, repeats numbered."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} (.+)$", text, flags=re.MULTILINE):
        anchor = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        repeats = sum(1 for known in found if re.fullmatch(rf"{re.escape(anchor)}(-\d+)?", known))
        found.add(f"{anchor}-{repeats}" if repeats else anchor)
    return found


def links(page: Path) -> list[str]:
    found = (one or other for one, other in LINK.findall(prose(page)))
    return [link for link in found if not re.match(r"[a-z]+:", link)]


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_leads_somewhere(page):
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link}: no such file"
        if anchor:
            assert anchor in anchors(target), f"{link}: no such heading; there are {sorted(anchors(target))}"


def test_links_are_found_at_all():
    assert {"docs/design.md", "docs/img/run.png", "CONTRIBUTING.md"} <= set(links(ROOT / "README.md"))
    assert "what-it-is-compared-with" in anchors(ROOT / "docs/method.md")


def test_the_readme_is_read_in_one_sitting():
    assert len((ROOT / "README.md").read_text().splitlines()) <= MOST_LINES


def test_every_page_is_in_the_readmes_index():
    linked = {link.partition("#")[0] for link in links(ROOT / "README.md")}
    assert {named(page) for page in (ROOT / "docs").glob("*.md")} <= linked


def tracked_texts() -> dict[str, str]:
    """Every text file of the repository; of a checkout, those that git knows."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    paths = [ROOT / name for name in listed.split("\0") if name] or list(ROOT.rglob("*.py"))
    texts = {}
    for path in paths:
        if path.is_file():
            try:
                texts[named(path)] = path.read_text()
            except UnicodeDecodeError:
                continue
    return texts


def test_what_the_repository_cites_of_its_docs_is_there():
    for name, text in tracked_texts().items():
        assert ABSENT not in text, f"{name} cites {ABSENT}, which the repository does not hold"
        for page in re.findall(r"\bdocs/[\w/]+\.md\b", text):
            assert (ROOT / page).exists() or Path(page).name in PLACEHOLDERS, f"{name} names {page}"
        for title in re.findall(r"\(docs/design\.md, ([^)]+)\)", text):
            titles = re.findall(r"^#{1,6} (.+)$", (ROOT / "docs/design.md").read_text(), flags=re.MULTILINE)
            assert title in titles, f"{name} names a section {title!r} of docs/design.md"


def ends_of_paths() -> set[str]:
    """Every file's path, and what is left of it without its first folders."""
    parts = [Path(name).parts for name in tracked_texts()]
    return {"/".join(one[start:]) for one in parts for start in range(len(one))}


def test_a_file_that_is_named_with_its_room_lies_there():
    there = ends_of_paths()
    code = [ROOT / name for name in tracked_texts() if re.match(r"(proxykd|actors|services)/.*\.py$", name)]
    for text in (*PAGES, *code):
        for path in NAMED_FILE.findall(text.read_text()):
            assert path in there or Path(path).name in PLACEHOLDERS, f"{named(text)} names {path}"


def test_files_named_with_their_rooms_are_found_at_all():
    found = NAMED_FILE.findall("`stages/table.py`, configs/paper.yaml ([x](../configs/x.yaml)), and runs/x/report.json")
    assert found == ["stages/table.py", "configs/paper.yaml", "configs/x.yaml"]
    assert "loops/align.py" in ends_of_paths()
    assert "run/table.py" not in ends_of_paths()


@pytest.mark.parametrize("package", ["proxykd", "actors", "services"])
def test_the_readmes_tables_name_every_room(package):
    [table] = re.findall(
        rf"^\| `{package}/` \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", (ROOT / "README.md").read_text(), re.MULTILINE
    )
    rooms = [room for row in table.splitlines() for room in re.findall(r"`(\w+)/`", row.split("|")[1])]
    assert sorted(rooms) == sorted(path.parent.name for path in (ROOT / package).glob("*/__init__.py"))


def test_the_modules_that_pages_name_are_there():
    """Those that stand without a room, by their own names."""
    known = {Path(name).name for name in tracked_texts()}
    for page in PAGES:
        for path in re.findall(r"`(?:[\w.-]+/)*([\w-]+\.(?:py|js))`", page.read_text()):
            assert path in known | PLACEHOLDERS, f"{named(page)} names {path}"
