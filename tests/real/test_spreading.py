"""A corpus that is made by Ray tasks: the same bytes, whoever dies, and errors that arrive as what they are."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import pytest

from actors.data.engine_shards import Sampler, ShardMaker
from actors.data.spreading import OnRay
from actors.engine.proxy_engine import Generation
from proxykd.data import corpus_blocks, ingest
from proxykd.data.corpus_segments import source_of
from proxykd.data.corpus_store import write_corpus, write_rows
from proxykd.data.row_ranges import whole
from proxykd.errors import CorpusError, IntegrityError
from proxykd.runs.run_directory import RunDirectory
from proxykd.training.sampling import Room
from tests.inline_run import Untold
from tests.small_run import run_config
from tests.unit.test_ingest import config_of, files, rows


class Mortal:
    """Does as `work` does, but its process dies the first time."""

    def __init__(self, work, mark):
        self.work, self.mark = work, str(mark)

    def __call__(self, item):
        try:
            os.close(os.open(self.mark, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return self.work(item)
        os._exit(1)


class Dying(OnRay):
    """Kills a worker in the midst of the blocks, and one in the midst of the buckets."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def map(self, work, items):
        return super().map(Mortal(work, self.folder / type(work).__name__), items)


def made(config, tiny, spread=None):
    run = RunDirectory.create(config)
    write_corpus(run, config, source_of(config), tiny, spread)
    return run


@pytest.fixture
def jsonl(tmp_path):
    (tmp_path / "c.jsonl").write_text("".join(f"{line}\n" for line in rows(6000)))
    return tmp_path / "c.jsonl"


def test_tasks_make_the_same_bytes_though_workers_die(cluster, tiny, tmp_path, jsonl):
    expected = files(made(config_of(tiny, tmp_path / "here", jsonl), tiny).corpus)
    for name, spread in (("ray", OnRay()), ("dying", Dying(tmp_path))):
        assert files(made(config_of(tiny, tmp_path / name, jsonl), tiny, spread).corpus) == expected
    assert (tmp_path / "BlockWriter").exists()
    assert (tmp_path / "BucketWriter").exists()
    limited = files(made(config_of(tiny, tmp_path / "some", jsonl, limit=500), tiny).corpus)
    assert files(made(config_of(tiny, tmp_path / "some-ray", jsonl, limit=500), tiny, OnRay()).corpus) == limited


def test_what_a_task_cannot_read_is_told_as_it_is(cluster, tiny, tmp_path, jsonl):
    import gzip

    packed = gzip.compress(jsonl.read_bytes())
    (tmp_path / "c.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(CorpusError, match=r"c\.jsonl\.gz cannot be unpacked after line \d+"):
        made(config_of(tiny, tmp_path, tmp_path / "c.jsonl.gz"), tiny, OnRay())


def test_nothing_of_the_text_comes_to_the_caller(cluster, tiny, tmp_path, jsonl, monkeypatch):
    """The caller reads indices and sends places: it neither reads the source nor tokenises nor gathers."""

    def refused(*_):
        raise AssertionError("in the caller's process")

    monkeypatch.setattr(ingest.Part, "blocks", refused)
    monkeypatch.setattr(corpus_blocks, "read_row", refused)
    monkeypatch.setattr(ingest, "gather", refused)
    assert files(made(config_of(tiny, tmp_path, jsonl), tiny, OnRay()).corpus)


class Engine:
    """Answers by the prompt alone, in whichever process it is asked; once, after ten calls, that process dies."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __call__(self, method, prompts, max_tokens, seeds):
        (Path(self.folder) / uuid4().hex).touch()
        if len(os.listdir(self.folder)) > 10:
            with suppress(FileExistsError):
                open(f"{self.folder}-died", "x").close()
                os._exit(1)
        return [Generation([*ids, 2], True, "a") for ids in prompts]


def test_tasks_that_feed_an_engine_make_the_same_shards_though_one_dies_and_name_what_is_torn(cluster, tmp_path):
    run = RunDirectory.create(run_config("any", str(tmp_path / "runs"), resources={"engine_rows_in_flight": 8}))
    rows = [{"id": f"r{i}", "prompt_ids": [5, i + 10], "completion_ids": [7]} for i in range(40)]
    source = write_rows(run.corpus / "alignment", rows, 5)
    (tmp_path / "calls").mkdir()
    draw = Sampler(Engine(tmp_path / "calls"), 1, 0, Room(64))

    def pairs(name, spread=None):
        shards = {run.root / name / path.name: whole([path]) for path in source}
        ShardMaker(run, spread or OnRay(), Untold).pairs(shards, draw, run.config().alignment)
        run.sweep()
        return files(run.root / name)

    assert pairs("on-ray") == pairs("on-ray-again")
    assert len(os.listdir(tmp_path / "calls")) > 80  # some were asked for twice
    source[3].write_bytes(source[3].read_bytes()[:-9])
    with pytest.raises(IntegrityError, match=r"alignment/shard-00003\.parquet has sha256"):
        pairs("torn")
