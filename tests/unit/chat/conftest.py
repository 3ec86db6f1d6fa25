"""A finished run of all four models: a proxy with an adapter, a student, one by SFT beside it, and their start."""

from __future__ import annotations

import pytest

from actors.run.pipeline import Pipeline
from tests.inline_run import Trainers, context_of, make_run, stream_rows


@pytest.fixture(scope="session")
def run(tiny, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        stream_rows(patch)
        sft = {"learning_rate": 2e-3, "global_batch": 8, "epochs": 1}
        run = make_run(tiny, tmp_path_factory.mktemp("chat"), sft=sft)
        Pipeline(context_of(run, Trainers())).execute()
        return run
