"""Every room says what it may import, imports no more than that, and has its layer; none is crowded."""

from __future__ import annotations

import ast
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("proxykd", "actors", "services")
DESIGN = ROOT / "docs" / "design.md"
MOST_FILES = 20
ROOMS = [f"{package}/{path.parent.name}" for package in PACKAGES for path in (ROOT / package).glob("*/__init__.py")]
"""The sub-packages right under a package; a room may have one within, which follows its rules."""


def sub_packages() -> list[str]:
    found = (path.parent for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return sorted({str(path.relative_to(ROOT)) for path in found} - set(PACKAGES))


@cache
def docstring(folder: str) -> str:
    return ast.get_docstring(ast.parse((ROOT / folder / "__init__.py").read_text())) or ""


@cache
def allowed(room: str) -> frozenset[str]:
    """What a room's docstring lets it import of its package's other rooms."""
    package, own = room.split("/")
    others = {name.partition("/")[2] for name in ROOMS if name.startswith(f"{package}/")} - {own}
    [said] = re.findall(r"(?:May import|Imports) ([^.]+)\.", docstring(room))
    named = others & set(re.findall(r"\w+", said))
    if said.startswith("every other room"):
        return frozenset(others - named)
    beyond = (
        [allowed(f"{package}/{name}") for name in named] if "what that may" in said or "what those may" in said else []
    )
    return frozenset(named.union(*beyond))


def imported(room: str) -> set[str]:
    """The other rooms of its package that a room's files import, anywhere in them."""
    package, own = room.split("/")
    found: set[str] = set()
    for path in (ROOT / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules = [f"{node.module}.{alias.name}" for alias in node.names]
            parts = [module.split(".") for module in modules]
            found |= {one[1] for one in parts if one[0] == package and len(one) > 1}
    return {name for name in found if f"{package}/{name}" in ROOMS} - {own}


@cache
def layers(package: str) -> tuple[tuple[str, ...], ...]:
    """Of a package's rooms, from the top."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    [own] = [one for one in contracts if one["type"] == "layers" and one.get("containers") == [package]]
    return tuple(tuple(name.strip() for name in layer.split("|")) for layer in own["layers"])


@pytest.mark.parametrize("folder", sub_packages())
def test_every_sub_package_says_what_it_may_import(folder):
    assert re.search(r"(May import|Imports) [^.]+\.", docstring(folder)), (
        f"{folder}/__init__.py says nothing of imports"
    )
    assert 2 <= len([line for line in docstring(folder).splitlines() if line]) <= 5


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_what_its_docstring_says(room):
    assert imported(room) <= allowed(room)


@pytest.mark.parametrize("room", ROOMS)
def test_what_a_room_says_lies_below_its_layer(room):
    package, own = room.split("/")
    place = next(number for number, layer in enumerate(layers(package)) if own in layer)
    assert allowed(room) <= {name for layer in layers(package)[place + 1 :] for name in layer}


@pytest.mark.parametrize("package", PACKAGES)
def test_the_layers_name_every_room_once(package):
    modules = {path.stem for path in (ROOT / package).glob("*.py")} - {"__init__"}
    rooms = {room.partition("/")[2] for room in ROOMS if room.startswith(f"{package}/")}
    named = [name for layer in layers(package) for name in layer]
    assert sorted(named) == sorted(rooms | modules)


@pytest.mark.parametrize("folder", [*PACKAGES, *sub_packages()])
def test_no_folder_is_crowded(folder):
    assert len(list((ROOT / folder).glob("*.py"))) <= MOST_FILES


def test_the_design_page_shows_the_layers():
    """In three columns, one a package."""
    shown = re.findall(r"^ {4}(proxykd +)(actors +)services.*\n((?: {4}.*\n)+)", DESIGN.read_text(), re.MULTILINE)
    [(first, second, rows)] = shown
    ends = [0, len(first), len(first) + len(second), None]
    for package, start, end in zip(PACKAGES, ends, ends[1:], strict=False):
        column = [row[4:][start:end].strip() for row in rows.splitlines()]
        assert [one for one in column if one] == [", ".join(layer) for layer in layers(package)]


def test_what_docstrings_say_is_understood():
    assert allowed("proxykd/losses") == allowed("actors/engine") == frozenset()
    assert allowed("proxykd/text") == {"runs", "config"}
    assert allowed("actors/run") == {"training", "data", "engine", "cluster", "telemetry"}
    assert "training" in imported("actors/run")
