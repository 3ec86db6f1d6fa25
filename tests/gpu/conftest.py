"""Skips where there is no GPU; says at the end what ran where, and the figures that tests have seen."""

from __future__ import annotations

import platform
from collections.abc import Callable
from importlib.metadata import version

import pytest
import torch

PACKAGES = ("torch", "transformers", "peft", "pydantic")
FIGURES: list[str] = []


@pytest.fixture(scope="session", autouse=True)
def _on_a_card() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU here: torch.cuda.is_available() is False")


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Keeps a figure for the end of the session."""
    return lambda text: FIGURES.append(f"{request.node.name}: {text}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    terminalreporter.section("figures")
    for line in (*FIGURES, f"{card}; Python {platform.python_version()}, {versions}"):
        terminalreporter.write_line(line)
