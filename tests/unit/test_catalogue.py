"""The adapters of a run by name, from its directory alone."""

from __future__ import annotations

import pytest

from proxykd.runs.adapter_catalogue import UnknownAdapterError, catalogue, find, trust_of_run
from proxykd.runs.storage import RunDirectory, publish_directory, write_json
from tests.small_run import run_config


def fake_adapter(run: RunDirectory, number: int | None, name: str | None = None) -> str:
    name = name or (f"r{number:02d}-{number:08d}" if number else "warmup-00000000")
    publish_directory(
        run.adapters / name, lambda _: {"name": name, "sha256": f"sha-{name}", "round": number, "parent": None}
    )
    return name


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    return RunDirectory.create(run_config("none", str(tmp_path)))


def test_names_aliases_and_the_aligned_one_follow_the_promotions(run):
    assert [card.name for card in catalogue(run)] == [f"{run.id}-base"]
    names = [fake_adapter(run, number) for number in (0, 1, 2)]
    fake_adapter(run, None, "student-12345678")
    (run.adapters / "r03-unfinished").mkdir()
    write_json(run.stages / "warmup.json", {"result": {"adapter": names[0]}})
    write_json(run.stages / "align-01.json", {"result": {"round": 1, "adapter": names[1], "decision": "promote"}})
    write_json(run.stages / "align-02.json", {"result": {"round": 2, "adapter": names[2], "decision": "reject"}})
    cards = catalogue(run)
    assert [card.directory for card in cards] == [None, *names]
    assert [card.aliases for card in cards] == [("base",), ("warmup",), ("r01", "aligned"), ("r02",)]
    for alias in ("aligned", "r01", names[1], f"{run.id}-{names[1]}"):
        assert find(cards, alias).sha256 == f"sha-{names[1]}"
    with pytest.raises(UnknownAdapterError, match=rf"unknown adapter 'r03'; known: {run.id}-base \(base\)"):
        find(cards, "r03")


def test_trust_is_that_of_the_aligned_adapter(run):
    assert trust_of_run(run) is None
    write_json(
        run.stages / "score.json", {"result": {"adapter": "r01", "mu": -2.0, "gamma": 0.5, "reduction": "token_mean"}}
    )
    trust = trust_of_run(run)
    assert trust is not None
    z, weight = trust.judge(-6.0, 4)
    assert z == pytest.approx(1.0)
    assert weight == pytest.approx(0.7310585786)
