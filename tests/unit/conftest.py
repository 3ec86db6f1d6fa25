"""Both kinds of storage, for the tests of everything that a run directory promises; and streams without Ray."""

from __future__ import annotations

from collections.abc import Iterator
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


@pytest.fixture(scope="module")
def streams() -> Iterator[None]:
    """The pipeline's streams are plain lists of rows, for a whole run in this process (tests/inline_run.py)."""
    from tests.inline_run import stream_rows  # here: it needs torch, and this file is read by tests that have none

    with pytest.MonkeyPatch.context() as patch:
        stream_rows(patch)
        yield
