"""Both kinds of storage, for the tests of everything that a run directory promises."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxykd.runs.storage import location
from tests.object_store import new_bucket


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An empty folder to keep runs in: on this machine, or in a bucket of a real S3 server."""
    if request.param == "local":
        return tmp_path / "runs"
    request.getfixturevalue("object_store")
    return location(new_bucket())
