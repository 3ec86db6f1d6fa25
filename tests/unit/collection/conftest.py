"""The stub as a provider, prompts for it, and what an undisturbed collection gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.collecting import config_for, digest, whole, write_prompts
from tests.teacher_stub import teacher_stub


@pytest.fixture(scope="module")
def stub():
    with teacher_stub() as running:
        yield running


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write_prompts(tmp_path)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of a data set that nothing befell."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with teacher_stub() as stub:
        whole(folder / "out", config_for(stub), write_prompts(folder))
        assert stub.stats()["answered_twice"] == 0
    return digest(folder / "out")
