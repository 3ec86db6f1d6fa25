"""The pipeline's own decisions, without what it drives."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from actors.stages import Pipeline
from proxykd.errors import CorpusError
from proxykd.storage import RunDirectory, write_json
from tests.small_run import run_config


def pipeline(tmp_path, records, **alignment):
    """Of a run whose corpus has `records` to align with; any stage that it begins fails the test."""
    config = run_config("none", str(tmp_path / "runs"), alignment={"max_new_tokens": 12, **alignment})
    run = RunDirectory.create(config)
    write_json(run.corpus / "manifest.json", {"alignment": records, "dropped": {}, "sources": []})
    return Pipeline(SimpleNamespace(run=run, config=config, journal=None, events=None))


class Begun(Exception):
    """A stage was begun."""


def test_more_rounds_than_records_are_refused_before_anything_is_trained(tmp_path, monkeypatch):
    def begin(*_, **__):
        raise Begun

    few = pipeline(tmp_path / "few", 3, rounds=4)
    enough = pipeline(tmp_path / "enough", 4, rounds=4)
    wrapped = pipeline(tmp_path / "wrapped", 3, rounds=4, pairs_per_round=2)
    for one in (few, enough, wrapped):
        monkeypatch.setattr(one, "_once", begin)
    with pytest.raises(CorpusError, match=r"the alignment slice has 3 records for alignment\.rounds=4"):
        few.align_in_rounds()
    for one in (enough, wrapped):
        with pytest.raises(Begun):
            one.align_in_rounds()
