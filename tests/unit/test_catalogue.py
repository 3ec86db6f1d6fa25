"""The adapters of a run by name, from its directory alone."""

from __future__ import annotations

import pytest

from proxykd.errors import IntegrityError
from proxykd.report.adapter_catalogue import adapters_in_force, catalogue, find, trust_of_run
from proxykd.runs.adapter_names import UnknownAdapterError
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import delete, publish_directory, write_json
from proxykd.stages.align import ALIGN
from proxykd.stages.score import SCORE
from proxykd.stages.warmup import WARMUP
from tests.small_run import run_config
from tests.stage_results import aligned, finish, labels, warmed_up


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
    finish(run, WARMUP, warmed_up(names[0]))
    finish(run, ALIGN, aligned(1, names[1]), 1)
    finish(run, ALIGN, aligned(2, names[2], decision="reject"), 2)
    cards = catalogue(run)
    assert [card.directory for card in cards] == [None, *names]
    assert [card.aliases for card in cards] == [("base",), ("warmup",), ("r01", "aligned"), ("r02",)]
    for alias in ("aligned", "r01", names[1], f"{run.id}-{names[1]}"):
        assert find(cards, alias).sha256 == f"sha-{names[1]}"
    with pytest.raises(UnknownAdapterError, match=rf"unknown adapter 'r03'; known: {run.id}-base \(base\)"):
        find(cards, "r03")


def test_trust_is_that_of_the_aligned_adapter(run):
    assert trust_of_run(run) is None
    finish(run, SCORE, labels("r01", -2.0, 0.5, "token_mean"))
    trust = trust_of_run(run)
    assert trust is not None
    z, weight = trust.judge(-6.0, 4)
    assert z == pytest.approx(1.0)
    assert weight == pytest.approx(0.7310585786)


def tell(run, mu):
    """A warm-up, a round that was promoted and one that was not, and the labels' trust, whose numbers say `mu`."""
    names = [fake_adapter(run, number, f"r{number:02d}-{mu:g}") for number in (0, 1, 2)]
    finish(run, WARMUP, warmed_up(names[0]))
    for number, decision in ((1, "promote"), (2, "reject")):
        finish(run, ALIGN, aligned(number, names[number], decision=decision), number)
    finish(run, SCORE, labels("r01", mu, 1.0))
    return names


def test_a_run_that_was_begun_anew_is_read_anew(store):
    """In one process, as a dashboard sees it; also where an adapter has the very name of the one that it replaces."""
    config = run_config("none", str(store))
    for mu in (-2.0, -3.0):
        run = RunDirectory.create(config)
        names = tell(run, mu)
        publish_directory(run.adapters / "r03-same", lambda _: {"sha256": f"sha {mu}", "round": 3})
        assert trust_of_run(run).mu == mu
        assert [entry["adapter"] for entry in adapters_in_force(run)] == [names[0], names[1], names[1]]
        cards = catalogue(run)
        assert [card.directory for card in cards] == [None, *names, "r03-same"]
        assert find(cards, "aligned").directory == names[1]
        assert find(cards, "r03").sha256 == f"sha {mu}"
        delete(run.root)


def test_a_directory_that_was_never_finished_is_no_adapter(store):
    run = RunDirectory.create(run_config("none", str(store)))
    name = fake_adapter(run, 1)
    write_json(run.adapters / "r02-torn" / "manifest.json", {"sha256": "x", "round": 2})
    assert [card.directory for card in catalogue(run)] == [None, name]


def test_a_marker_of_another_version_is_refused_with_file_and_field(run):
    write_json(run.stages / "score.json", {"stage": "score", "result": {"adapter": "r01", "mu": -2.0}})
    with pytest.raises(IntegrityError, match=r"score.json: round: Field required; another version of proxykd wrote it"):
        trust_of_run(run)
