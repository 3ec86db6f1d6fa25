"""Whole text: warm-up, rounds, labels and student draw from one slice of all the training text; nothing is held out less."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest

from actors.data.engine_shards import ShardMaker
from actors.run import alignment
from actors.run.pipeline import Pipeline
from proxykd.collection import dataset as datasets
from proxykd.data.corpus_segments import source_of
from proxykd.data.corpus_store import manifest, read_slice, slice_shards, write_corpus, write_rows_shard
from proxykd.data.row_ranges import read_ranges, read_shard_rows
from proxykd.report.overview import overview
from proxykd.report.run_report import build_report
from proxykd.report.trust_examples import trust_examples
from proxykd.runs.storage import read_table
from proxykd.stages.assist import ASSIST
from proxykd.stages.complete import COMPLETE
from proxykd.stages.distil import DISTIL
from proxykd.stages.results import Results
from proxykd.stages.score import SCORE
from proxykd.stages.table import stage_keys
from tests.inline_run import Lender, Trainers, context_of, make_run
from tests.teacher_stub import teacher_stub
from tests.tiny_model import corpus_rows
from tests.unit.test_corpus_segments import collect
from tests.unit.test_growing_run import Collecting

TRAINED = ["warmup", "align-01", "align-02", "score", "distil", "evaluate"]
HELD_OUT = {"validation", "test"}
PARTS = ["warmup", "alignment", "distillation"]


def whole(folder, **settings):
    return {
        "path": str(folder / "c.jsonl"),
        "max_length": 96,
        "shard_records": 8,
        "whole_text": True,
        **settings,
    }


def expected_ids():
    """The training records of 48 rows, by the hash of their prompts: 10 % are held out."""

    def position(row):
        said = "user:" + " ".join(row["prompt"].casefold().split())
        return int(hashlib.sha256(said.encode()).hexdigest()[:16], 16) / 2**64

    return {row["id"] for row in corpus_rows(48) if position(row) >= 0.1}


def streamed_ids(trainers, key):
    """Of the rows that a loop streamed."""
    return [row["id"] for row in trainers.streamed[key]]


@pytest.fixture(scope="module")
def finished(streams, tiny, tmp_path_factory):
    """A run whose machine died in its second round, and what its trainers had before and afterwards."""
    folder = tmp_path_factory.mktemp("whole")
    run = make_run(tiny, folder, corpus=whole(folder))
    before, after = Trainers(fail_at="align-02"), Trainers()
    with pytest.raises(OSError, match="dies in align-02"):
        Pipeline(context_of(run, before)).execute()
    Pipeline(context_of(run, after)).execute()
    return run, before, after


def test_every_step_sees_all_training_text(finished):
    run, before, after = finished
    training = expected_ids()
    assert sorted(streamed_ids(before, "warmup")) == sorted(training)
    first, second = streamed_ids(before, "align-01"), streamed_ids(after, "align-02")
    assert sorted([*first, *second]) == sorted(training)
    assert abs(len(first) - len(second)) <= 1
    assert sorted(streamed_ids(after, "distil")) == sorted(training)
    labels = run.soft_labels(SCORE.finished(run).result.adapter)
    scored = [row["record_id"] for path in sorted(labels.glob("*.parquet")) for row in read_table(path).to_pylist()]
    assert sorted(scored) == sorted(training)
    assert sorted(one.record_id for one in trust_examples(run, 0.0, 1.0, 99)) == sorted(training)


def test_a_resumed_run_takes_the_same_and_does_what_is_left(finished):
    run, before, after = finished
    assert (before.asked, after.asked) == (TRAINED[:3], TRAINED[2:])
    assert streamed_ids(before, "align-02") == streamed_ids(after, "align-02")
    assert [stage.key for stage in Results.read(run).stages] == ["models", "corpus", *TRAINED]


def test_the_training_slice_is_stored_once_and_counted_once(finished):
    run, *_ = finished
    assert {path.name for path in run.corpus.iterdir() if path.is_dir()} == {"training", *HELD_OUT}
    found, count = overview(run).corpus, len(expected_ids())
    assert found == build_report(run, "told").corpus
    assert (found.training, found.records, found.validation + found.test) == (count, 48, 48 - count)
    assert [getattr(found, name) for name in PARTS] == [None] * 3


def test_what_is_held_out_is_the_same_as_with_the_split(finished, tiny, tmp_path):
    run, *_ = finished
    corpus = run.config().corpus.model_copy(update={"whole_text": False})
    split = make_run(tiny, tmp_path, corpus=corpus.model_dump())
    write_corpus(split, split.config(), source_of(split.config()), tiny)
    for name in HELD_OUT:
        assert read_slice(run, name) == read_slice(split, name) != []
    parts = [row for name in PARTS for row in read_slice(split, name)]
    assert {row["id"] for row in parts} == expected_ids()
    by_id = {row["id"]: row for row in parts}
    assert all(by_id[row["id"]] == row for row in read_slice(run, "training"))


def test_another_run_takes_it_over_and_one_with_the_split_does_not(finished, streams, tiny, tmp_path):
    donor, *_ = finished
    corpus = donor.config().corpus.model_dump()
    run = make_run(tiny, tmp_path, corpus=corpus, distillation={"alpha": 0.5, "global_batch": 8})
    trainers = Trainers()
    lent = ["corpus", *TRAINED[:4]]
    Pipeline(context_of(run, trainers, Lender(donor, lent))).execute()
    assert trainers.asked == ["distil", "evaluate"]
    assert sorted(streamed_ids(trainers, "distil")) == sorted(expected_ids())
    keys = {}
    for name, change in {"whole": {}, "split": {"whole_text": False}, "fewer": {"training_limit": 5}}.items():
        keys[name] = stage_keys(make_run(tiny, tmp_path / name, corpus=corpus | change).config())
    shared = [stage for stage in keys["whole"] if keys["whole"][stage] == stage_keys(run.config())[stage]]
    assert shared == ["corpus", "warmup", "align", "score"]
    for other in ("split", "fewer"):
        assert not keys["whole"].keys() - keys[other].keys()
        assert not set(keys["whole"].values()) & set(keys[other].values())


def test_a_warm_up_takes_what_the_corpus_began_with(streams, tiny, tmp_path, monkeypatch):
    """However much it has grown by the time at which it is begun again."""
    monkeypatch.setattr(datasets, "SHARD_RECORDS", 16)
    corpus = whole(tmp_path, path=str(tmp_path / "data"), follow=64, max_length=256)
    with teacher_stub() as stub:
        collect(stub, tmp_path, 64)
        run = make_run(tiny, tmp_path / "run", corpus=corpus)
        Pipeline(context_of(run, trainers := Collecting(lambda: collect(stub, tmp_path, 128)))).execute()
    assert trainers.asked == TRAINED
    began, now = (slice_shards(run, "training", segments) for segments in (0, 1))
    assert len(now) > len(began)
    assert SCORE.finished(run).result.segments == 1
    given = []

    def train(key, loop, task, stream):
        given.append((task.records, [row["id"] for row in stream]))
        return SimpleNamespace(records=task.records)

    alignment.warm_up(SimpleNamespace(run=run, config=run.config(), data_pool=None, train=train), None)
    ids = [row["id"] for path in began for row in read_shard_rows(path)]
    assert given == [(len(ids), ids)]
    first, second = (set(streamed_ids(trainers, f"align-0{number}")) for number in (1, 2))
    assert first <= set(ids)
    assert second - set(ids)
    assert not first & second
    assert manifest(run)["training"] == len(read_slice(run, "training")) > len(ids)
    labels = run.soft_labels(SCORE.finished(run).result.adapter)
    assert {path.name for path in labels.glob("*.parquet")} == {path.name for path in now}


# -- baselines -------------------------------------------------------------------------------------------------------


class OneEngine:
    """The open teacher's, of which it counts the starts."""

    def __init__(self):
        self.starts = 0

    @contextmanager
    def proxy(self, *_):
        self.starts += 1
        yield None

    def release(self, _):
        pass


@pytest.fixture
def run_arm(streams, tiny, tmp_path, monkeypatch):
    """Makes a finished run of an arm whose open teacher answers in the corpus' words; with its trainers, how often its
    engine was started, and the ids that it completed."""

    def start(source, whole_text):
        completed, engine, trainers = [], OneEngine(), Trainers()

        def complete(_, shards, draw):
            for path, ranges in shards.items():
                rows = read_ranges(ranges)
                completed.extend(row["id"] for row in rows)
                write_rows_shard(path, rows)

        monkeypatch.setattr(ShardMaker, "completions", complete)
        folder = tmp_path / f"{source}-{whole_text}"
        white_box = {"teacher": {"source": str(tiny), "dtype": "float32"}, "assistant": {"global_batch": 8}}
        distillation = {"source": source, "global_batch": 8, "evaluations": 1}
        corpus = whole(folder, whole_text=whole_text)
        run = make_run(tiny, folder, corpus=corpus, white_box=white_box, distillation=distillation)
        context = context_of(run, trainers)
        context.facilities = replace(context.facilities, engines=engine)
        Pipeline(context).execute()
        return run, trainers, engine.starts, completed

    return start


def completions(run):
    return {path.name for path in (run.root / "white_box").iterdir()}


def test_takd_completes_the_training_text_once_and_both_learn_from_all_of_it(run_arm, tiny, tmp_path):
    run, trainers, starts, completed = run_arm("assistant", True)
    training = sorted(expected_ids())
    assert (starts, sorted(completed), completions(run)) == (1, training, {"training"})
    assert sorted(streamed_ids(trainers, "assist")) == sorted(streamed_ids(trainers, "distil")) == training
    made = {stage.name: stage.finished(run) for stage in (COMPLETE, ASSIST, DISTIL)}
    assert {name: one.records for name, one in made.items()} == dict.fromkeys(made, len(training))
    folders = [folder for stage in (COMPLETE, ASSIST) for folder in stage.files(run, made[stage.name].result)]
    assert folders.count(run.completed("training")) == 1
    assert len(folders) == len(set(folders))


def test_with_the_split_takd_completes_each_slice_where_it_is_needed(run_arm):
    run, trainers, starts, completed = run_arm("assistant", False)
    assert (starts, sorted(completed), completions(run)) == (2, sorted(expected_ids()), set(PARTS))
    ids = {name: {row["id"] for row in read_slice(run, name)} for name in PARTS}
    assert set(streamed_ids(trainers, "assist")) == ids["warmup"] | ids["alignment"]
    assert set(streamed_ids(trainers, "distil")) == ids["distillation"]
    assert set(COMPLETE.files(run, None)) == {run.completed("distillation")}
    assert {run.completed("warmup"), run.completed("alignment")} < set(ASSIST.files(run, ASSIST.finished(run).result))


@pytest.mark.parametrize(("source", "completed_too"), [("white_box", True), ("none", False)])
def test_other_baselines_learn_from_all_of_it_too(run_arm, source, completed_too):
    _, trainers, _, completed = run_arm(source, True)
    assert sorted(streamed_ids(trainers, "distil")) == sorted(expected_ids())
    assert sorted(completed) == (sorted(expected_ids()) if completed_too else [])
    assert trainers.asked == ["distil", "evaluate"]
