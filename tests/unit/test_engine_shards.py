"""Shards that an engine's answers make: the right answer beside every row, whatever call it came by; resumed, stopped,
and refused where what they are made of is torn."""

from __future__ import annotations

import pytest

from actors.data import engine_shards
from actors.data.engine_shards import EngineCall, Sampler, ShardMaker
from actors.engine.proxy_engine import Generation
from proxykd.data.corpus_store import write_rows
from proxykd.data.ingest import Here
from proxykd.data.pairs import read_pairs
from proxykd.data.row_ranges import parts, read_shard_rows, whole
from proxykd.errors import EngineError, IntegrityError, RunStoppedError
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import unfinished
from proxykd.text.seeds import sample_seed
from proxykd.training.sampling import Room
from tests.small_run import run_config

STOP = 2


class Engine:
    """Completes each prompt with its last token and STOP; counts calls and rows."""

    def __init__(self):
        self.sizes = []

    def __call__(self, method, prompts, max_tokens, seeds):
        assert method == "generate"
        self.sizes.append(len(prompts))
        return [Generation([seed % 1000, ids[-1], STOP], True, "a") for ids, seed in zip(prompts, seeds, strict=True)]


class Told:
    def __init__(self):
        self.reports = []

    def add(self, *report):
        self.reports.append(report)


@pytest.fixture
def made(tmp_path):
    """A run with a slice of 23 rows in shards of 5, to be made anew in shards of 9; how, and who is told."""
    resources = {"engine_rows_in_flight": 16, "engine_replicas": 2}
    run = RunDirectory.create(run_config("any", str(tmp_path), resources=resources))
    rows = [{"id": f"r{i}", "prompt_ids": [5, 100 + i], "completion_ids": [7] * (i % 4 + 1)} for i in range(23)]
    source = whole(write_rows(run.corpus / "alignment", rows, 5))
    folder = run.pairs(1)
    shards = {folder / f"shard-{i:05d}.parquet": part for i, part in enumerate(parts(source, 9))}
    told = Told()
    return run, rows, shards, ShardMaker(run, Here(), lambda: told), told


def sampler(engine):
    return Sampler(engine, 3, 7, Room(64))


def test_each_row_has_its_own_answer_whatever_call_it_came_by(made):
    run, rows, shards, maker, told = made
    engine = Engine()
    maker.pairs(shards, sampler(engine), run.config().alignment)
    pairs = [pair for path in shards for pair in read_pairs(path)]
    assert [pair["id"] for pair in pairs] == [row["id"] for row in rows]
    for pair, row in zip(pairs, rows, strict=True):
        seed = sample_seed(7, 3, row["id"])
        assert (pair["seed"], pair["rejected_ids"]) == (seed, [seed % 1000, row["prompt_ids"][-1], STOP])
        assert pair["completion_ids"] == row["completion_ids"]
    assert (max(engine.sizes), sum(engine.sizes)) == (2, 23)
    assert sorted(told.reports) == [(5, 23, "pairs"), (9, 23, "pairs"), (9, 23, "pairs")]


def test_what_is_finished_stands_and_what_is_torn_is_made_again(made):
    *_, shards, maker, _ = made
    maker.completions(shards, sampler(Engine()))
    first, torn, gone = shards
    before = first.stat().st_mtime_ns
    torn.write_bytes(torn.read_bytes()[:-40])
    gone.unlink()
    engine = Engine()
    maker.completions(shards, sampler(engine))
    assert sum(engine.sizes) == 14
    assert first.stat().st_mtime_ns == before
    assert [row["completion_ids"][1] for path in shards for row in read_shard_rows(path)] == [
        100 + i for i in range(23)
    ]


def test_a_stop_leaves_whole_shards(made):
    run, _, shards, maker, _ = made

    class Stopping(Engine):
        def __call__(self, *args, **request):
            run.stop_request.touch()
            return super().__call__(*args, **request)

    with pytest.raises(RunStoppedError):
        maker.completions(shards, sampler(Stopping()))
    assert [unfinished(path) for path in shards] == [False, True, True]


@pytest.mark.parametrize("harm", ["cut short", "altered", "gone"])
def test_a_shard_that_rows_are_in_and_that_is_not_what_it_was_is_named(made, harm, monkeypatch):
    run, _, shards, maker, _ = made
    victim = run.corpus / "alignment" / "shard-00003.parquet"
    raw = victim.read_bytes()
    monkeypatch.setattr(engine_shards, "require_there", lambda ranges: list(ranges))  # it happens after that look
    if harm == "gone":
        victim.unlink()
    else:
        victim.write_bytes(raw[: len(raw) // 2] if harm == "cut short" else bytes([raw[0] ^ 1]) + raw[1:])
    with pytest.raises(IntegrityError, match=r"alignment/shard-00003\.parquet (is gone|has sha256)"):
        maker.completions(shards, sampler(Engine()))


class Dying:
    """An application whose engines die one after the other; each ends three calls before it is gone."""

    def __init__(self):
        self.calls = 0
        self.generate = self

    def remote(self, *_, **__):
        self.calls += 1
        return self

    def result(self, timeout_s):
        raise EngineError(f"the engine of process {(self.calls - 1) // 3} died")


def test_a_call_that_engines_die_of_is_not_asked_for_ever(monkeypatch):
    """What a call dies of once it may outlive; four engines that die of it will not be followed by a fifth."""
    app = Dying()
    monkeypatch.setattr(engine_shards.serve, "get_app_handle", lambda _: app)
    monkeypatch.setattr(engine_shards, "RETRY_S", 0.0)
    with pytest.raises(EngineError, match="4 engines died one after the other of a call; the engine of process 3 died"):
        EngineCall("app", "a", 1.0)("generate", prompts=[[1]], max_tokens=[1], seeds=[0])
    assert app.calls == 10
