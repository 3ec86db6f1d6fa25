"""The next round's samples are drawn while the round before is looked at, and are those that it would draw itself."""

from __future__ import annotations

import time

import pytest

from actors.run import sampling_ahead
from actors.run.pipeline import Pipeline
from actors.telemetry.event_files import latest_events
from actors.telemetry.event_types import SampledAhead, Warned
from proxykd.data.pairs import drawn_from, read_pairs
from proxykd.evaluation.promotion import Decision
from proxykd.runs.adapter_names import adapter_name
from proxykd.stages.align import ALIGN
from tests.inline_run import OwnEngines, Trainers, context_of, make_run, stream_rows

APART = {"trainer_threads": 1, "pools": {"engine": "one", "trainer": "other"}}


class SlowToJudge(Trainers):
    """After a round its workers take as long as the engine for all of the next round's shards, if there is one."""

    def train(self, name, request, resources):
        super().train(name, request, resources)
        run, number = self.run, getattr(request.call.task, "round", None)
        until = time.monotonic() + self.patience_s
        while number and time.monotonic() < until and len(list(run.pairs(number + 1).glob("*.ok"))) < self.shards:
            time.sleep(0.05)


def a_run(tiny, folder, **sections):
    alignment = {"rounds": 2, "global_batch": 4, "max_new_tokens": 6, "parity_records": 2, "learning_rate": 1e-3}
    return make_run(tiny, folder, **{"alignment": alignment, "resources": APART} | sections)


def execute(run, patience_s=20.0, shards=2):
    trainers, engines = SlowToJudge(), OwnEngines(run)
    trainers.run, trainers.patience_s, trainers.shards = run, patience_s, shards
    Pipeline(context_of(run, trainers, own_engines=engines)).execute()
    return engines


def ahead(run):
    return [logged.event for logged in latest_events(run.events, 100) if isinstance(logged.event, SampledAhead)]


@pytest.fixture(autouse=True)
def inline(monkeypatch):
    stream_rows(monkeypatch)
    monkeypatch.setattr(sampling_ahead, "POLL_S", 0.02)


def pairs_of(run, number):
    drop = ("adapter", "index")
    rows = [row for path in sorted(run.pairs(number).glob("*.parquet")) for row in read_pairs(path)]
    return [{key: value for key, value in row.items() if key not in drop} for row in rows]


def test_the_pairs_are_those_of_a_round_that_waited(tiny, tmp_path):
    fast = a_run(tiny, tmp_path / "fast")
    execute(fast)
    [told] = ahead(fast)
    assert (told.round, told.made, told.shards) == (2, told.shards, told.shards)
    in_turn = a_run(tiny, tmp_path / "in-turn", resources={"trainer_threads": 1})
    execute(in_turn, patience_s=0.0)
    assert ahead(in_turn) == []
    first = ALIGN.finished(fast, 1).result.adapter
    assert {drawn_from(path) for path in fast.pairs(2).glob("*.parquet")} == {adapter_name(fast.id, first)}
    assert pairs_of(fast, 2) == pairs_of(in_turn, 2) != []
    assert ALIGN.finished(fast, 2).result.adapter == ALIGN.finished(in_turn, 2).result.adapter
    assert not (fast.round(2) / "enough").exists()


def test_a_rejected_round_samples_nothing_and_what_was_drawn_is_drawn_anew(tiny, tmp_path, monkeypatch):
    from actors.run import alignment

    rejected = Decision("reject", "as told", warning=True)
    monkeypatch.setattr(alignment, "decide", lambda _: rejected)
    run = a_run(tiny, tmp_path)
    engines = execute(run)  # by the validation slice it would have been promoted
    warmup = engines.asked[0]
    assert ahead(run)[0].made > 0
    assert {drawn_from(path) for path in run.pairs(2).glob("*.parquet")} == {adapter_name(run.id, warmup)}
    monkeypatch.setattr(sampling_ahead, "decide", lambda _: rejected)
    run = a_run(tiny, tmp_path / "told")
    assert set(execute(run, patience_s=1.0).asked) == {warmup}
    assert ahead(run) == []


def test_an_engine_that_fails_ahead_costs_a_warning(tiny, tmp_path, monkeypatch):
    def fails(*_):
        raise OSError("no route to it")

    run = a_run(tiny, tmp_path)
    monkeypatch.setattr(sampling_ahead, "sampler", fails)
    execute(run, patience_s=1.0)
    said = [logged.event for logged in latest_events(run.events, 100)]
    assert Warned("round 2 was not sampled ahead: no route to it") in said
    assert ALIGN.finished(run, 2) is not None


def test_what_was_sampled_for_a_round_that_does_not_follow_is_removed(tiny, tmp_path, monkeypatch):
    from actors.run import alignment

    run = a_run(tiny, tmp_path)
    ended = alignment.stop_reason
    monkeypatch.setattr(
        alignment, "stop_reason", lambda changes, config: "enough" if changes else ended(changes, config)
    )
    execute(run)
    assert ahead(run)[0].made > 0
    assert not run.pairs(2).exists()
