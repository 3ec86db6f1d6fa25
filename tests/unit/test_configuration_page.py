"""docs/configuration.md is what the code says, and says something of every key."""

from __future__ import annotations

import re
from pathlib import Path

from click.testing import CliRunner

from proxykd.config import CertifyConfig, CollectConfig, RunConfig, Section, section_of
from proxykd.config.reference import configuration_page
from proxykd.study.studies import StudyConfig
from services.cli.main import main

DOCS = Path(__file__).parents[2] / "docs"
PAGE = configuration_page(StudyConfig)


def sections(kind: type[Section]) -> set[type[Section]]:
    inner = {found for field in kind.model_fields.values() if (found := section_of(field.annotation))}
    return {kind}.union(*map(sections, inner))


KINDS = set.union(*map(sections, (RunConfig, CollectConfig, CertifyConfig, StudyConfig)))


def test_the_page_is_what_make_docs_writes():
    assert (DOCS / "configuration.md").read_text() == PAGE, "run `make docs`"
    assert CliRunner().invoke(main, ["config", "reference"]).output == PAGE


def test_every_key_is_described():
    silent = [
        f"{kind.__name__}.{key}"
        for kind in KINDS
        for key, field in kind.model_fields.items()
        if field.description is None and section_of(field.annotation) is None
    ]
    assert silent == []
    assert [kind.__name__ for kind in KINDS if "__doc__" not in vars(kind) or not kind.__doc__] == []


def own_keys(kind: type[Section]) -> list[str]:
    """A kind's keys without those, as they are, of a kind above it that has a place of its own."""
    above: set[str] = next((set(base.model_fields) for base in kind.__mro__[1:] if base in KINDS), set())
    return [key for key in kind.model_fields if key not in above or key in vars(kind)["__annotations__"]]


def test_every_key_stands_in_the_page_once_for_each_kind_of_section():
    keys = [key for kind in KINDS for key in own_keys(kind)]
    rows = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)
    assert sorted(rows) == sorted(keys)


def test_a_row_has_type_bounds_default_and_meaning():
    assert "| `top_p` | number > 0 and ≤ 1 | `null` | Nucleus sampling" in PAGE
    assert "| `drop_layers` | list of integer | `[]` | Decoder layers" in PAGE
    assert "| `name` | text | must be set | Names the run" in PAGE
    assert "| `trust` | `sequence_sum`, `token_mean`, `constant`, `none` | `sequence_sum` | " in PAGE
    assert "`student`, `teacher.local`, `white_box.teacher` have the same keys." in PAGE


def test_its_links_lead_somewhere():
    headings = {path.name: anchors(path.read_text()) for path in DOCS.glob("*.md")}
    links = re.findall(r"\]\((?:([\w.]+\.md))?(?:#([\w-]+))?\)", PAGE)
    assert len(links) > 30
    for file, anchor in links:
        known = headings[file or "configuration.md"]
        assert not anchor or anchor in known, (file, anchor)


def anchors(page: str) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
