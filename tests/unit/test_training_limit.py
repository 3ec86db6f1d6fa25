"""corpus.training_limit: which records are drawn, what is said of the others, and who refuses a limit beyond all."""

from __future__ import annotations

import hashlib
import json

import pytest
from click.testing import CliRunner

from actors.run.preparation import collect
from proxykd.collection.requests import requests_for
from proxykd.config import CorpusConfig
from proxykd.data.corpus_segments import source_of
from proxykd.data.corpus_store import manifest, read_slice, write_corpus
from proxykd.data.ingest import Source
from proxykd.data.slices import place
from proxykd.errors import ConfigError, CorpusError
from proxykd.planning import text_checks
from proxykd.planning.text_checks import require_text
from proxykd.report.blocks import corpus_counts
from proxykd.runs.run_directory import RunDirectory
from proxykd.text.corpus import Record, prompt_key, read_prompts
from services.cli.main import main
from tests.inline_run import context_of
from tests.plain_corpus import read_corpus
from tests.small_run import run_config
from tests.tiny_model import WORDS, corpus_rows

HELD_OUT = ("validation", "test")
SPLIT = {"validation": 0.15, "test": 0.15, "warmup": 0.2, "alignment": 0.4, "distillation": 0.4}


def records(count, samples=1):
    return [
        Record(f"{i}-{sample}", ({"role": "user", "content": f"Which is {i}?"},), f"It is {sample}.")
        for i in range(count)
        for sample in range(samples)
    ]


def ids(placed, held_out):
    return {record.id for record, name in placed.records if (name in HELD_OUT) == held_out}


def drawn(given, limit, seed=3, **settings):
    return place(given, CorpusConfig(training_limit=limit, **settings), seed)


def test_so_many_are_drawn_and_fewer_are_among_them():
    given = records(300)
    everything = place(given, CorpusConfig(), 3)
    training = ids(everything, held_out=False)
    assert (everything.beyond_limit, everything.training) == (0, len(training))
    before = set()
    for limit in (1, 2, 50, 51, 200, len(training)):
        placed = drawn(given, limit)
        mine = ids(placed, held_out=False)
        assert len(mine) == limit
        assert before < mine <= training
        assert (placed.training, placed.beyond_limit) == (len(training), len(training) - limit)
        assert ids(placed, held_out=True) == ids(everything, held_out=True)
        before = mine
    assert before == training
    left = [record for record, _ in drawn(given, 50).records]
    assert left == [record for record in given if record in left]


def test_the_draw_is_by_seed_and_prompt_alone():
    given = records(200)
    order = sorted(
        (r for r, name in place(given, CorpusConfig(), 0).records if name not in HELD_OUT),
        key=lambda r: hashlib.sha256(f"7:{prompt_key(r.messages)}".encode()).hexdigest(),
    )
    assert ids(drawn(given, 30, seed=7), held_out=False) == {record.id for record in order[:30]}
    assert drawn(given[::-1], 30, seed=7).records == drawn(given, 30, seed=7).records[::-1]
    assert drawn(given, 30, seed=8).records != drawn(given, 30, seed=7).records
    whole = drawn(given, 30, seed=7, whole_text=True)
    assert ids(whole, held_out=False) == ids(drawn(given, 30, seed=7), held_out=False)
    assert {name for _, name in whole.records} == {*HELD_OUT, "training"}


def test_a_prompt_is_drawn_with_all_of_its_samples():
    given = records(100, samples=3)
    for limit, taken in ((9, 9), (10, 9), (11, 9), (12, 12), (2, 0)):
        mine = ids(drawn(given, limit), held_out=False)
        assert len(mine) == taken
        assert all({f"{one.partition('-')[0]}-{sample}" for sample in range(3)} <= mine for one in mine)
    prompts = records(100)
    asked = place(prompts, CorpusConfig(training_limit=10), 3, each=3)
    assert {one.partition("-")[0] for one in ids(asked, held_out=False)} == {
        one.partition("-")[0] for one in ids(drawn(given, 10), held_out=False)
    }


def config_of(tiny, folder, rows=160, **corpus):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "c.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in corpus_rows(rows)))
    settings = {"path": str(path), "max_length": 96, "shard_records": 8, "split": SPLIT, **corpus}
    return run_config(str(tiny), str(folder / "runs"), corpus=settings)


def written(config, tiny):
    run = RunDirectory.create(config)
    write_corpus(run, config, source_of(config), tiny)
    return run


def test_the_corpus_on_disk_has_so_many_and_counts_the_others_apart(tiny, tmp_path):
    everything = written(config_of(tiny, tmp_path / "all"), tiny)
    split = written(config_of(tiny, tmp_path / "split", training_limit=40), tiny)
    whole = written(config_of(tiny, tmp_path / "whole", training_limit=40, whole_text=True), tiny)
    facts = manifest(everything)
    training = facts["records"] - facts["validation"] - facts["test"]
    assert facts["beyond_limit"] == 0
    for run in (split, whole):
        mine = manifest(run)
        assert (mine["records"], mine["beyond_limit"]) == (facts["records"] - training + 40, training - 40)
        assert mine["dropped"] == {}
        assert all(read_slice(run, name) == read_slice(everything, name) for name in HELD_OUT)
    parts = {name: read_slice(split, name) for name in ("warmup", "alignment", "distillation")}
    assert all(parts.values())
    assert {row["id"] for rows in parts.values() for row in rows} == {
        row["id"] for row in read_slice(whole, "training")
    }
    for name, rows in parts.items():  # each stays where it was
        assert rows == [row for row in read_slice(everything, name) if row in rows]
    assert corpus_counts(whole).beyond_limit == training - 40


def test_a_limit_that_leaves_a_slice_empty_says_so(tiny, tmp_path):
    with pytest.raises(
        CorpusError,
        match=r"within corpus\.training_limit 1 \(dropped: none\) leave the slice\(s\) .*; raise the limit, add",
    ):
        written(config_of(tiny, tmp_path, training_limit=1), tiny)


def test_a_data_set_that_grows_has_no_limit():
    with pytest.raises(ConfigError, match=r"corpus\.follow lets them grow; leave one of them out"):
        run_config("x", "runs", corpus={"path": "data", "follow": 5, "training_limit": 3})


# -- refused before anything starts ------------------------------------------------------------------------------------


def there(config):
    return place(read_corpus(config.corpus).records, config.corpus, config.seed).training


def prompts_of(tiny, folder, count=100, limit=None, **teacher):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Which is {i}?"}) + "\n" for i in range(count)))
    corpus = {"prompts": str(path), "max_length": 96, "split": SPLIT, "training_limit": limit}
    teacher = {"model": "m", "base_url": "http://localhost:1/v1", **teacher}
    return run_config(str(tiny), str(folder / "runs"), corpus=corpus, teacher=teacher)


def test_a_limit_beyond_the_training_records_is_refused_with_the_number_that_does(tiny, tmp_path):
    config = config_of(tiny, tmp_path)
    count = there(config)
    message = (
        rf"training_limit is {count + 1}, but {count} training records are there.*set corpus\.training_limit={count} or"
    )
    require_text([config, config_of(tiny, tmp_path, training_limit=count)])
    with pytest.raises(CorpusError, match=message):
        require_text([config, config_of(tiny, tmp_path, training_limit=count + 1)])
    with pytest.raises(CorpusError, match=message):
        require_text([config_of(tiny, tmp_path, training_limit=count + 1, whole_text=True)])


@pytest.mark.parametrize("samples", [1, 3])
def test_of_prompts_the_answers_that_they_will_have_are_counted(tiny, tmp_path, samples):
    config = prompts_of(tiny, tmp_path, samples=samples)
    requests = requests_for(read_prompts(config.corpus.prompts), config.teacher, config.seed)
    answers = [Record(request.id, request.messages, "It is.") for request in requests]
    count = place(answers, config.corpus, config.seed).training
    require_text([prompts_of(tiny, tmp_path, limit=count, samples=samples)])
    beyond = prompts_of(tiny, tmp_path, limit=count + 1, samples=samples)
    with pytest.raises(CorpusError, match=f"but {count} training records are there"):
        require_text([beyond])
    with pytest.raises(CorpusError, match=f"but {count} training records are there"):
        collect(context_of(RunDirectory.create(beyond), None), None)


def test_each_corpus_is_read_once_and_one_that_is_not_here_is_left_to_the_run(tiny, tmp_path, monkeypatch):
    asked = []
    read = text_checks.records_in
    monkeypatch.setattr(text_checks, "records_in", lambda config: asked.append(config) or read(config))
    limits = [config_of(tiny, tmp_path, training_limit=limit, whole_text=limit > 15) for limit in (10, 20, 30)]
    require_text(limits)
    assert len(asked) == 1
    require_text([config_of(tiny, tmp_path), config_of(tiny, tmp_path, path="/elsewhere", training_limit=9)])
    assert len(asked) == 1


def test_what_was_collected_is_used_be_it_less_than_the_limit(tiny, tmp_path):
    """What the teacher refused has been asked for all the same."""
    config = prompts_of(tiny, tmp_path, limit=60)
    run = RunDirectory.create(config)
    rows = [{"prompt": f"Which is {i}?", "completion": f"{WORDS[i % 20]}."} for i in range(70)]
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_corpus(run, config, Source((str(path),)), tiny)
    assert manifest(run)["beyond_limit"] == 0
    assert manifest(run)["records"] == 70


def test_the_commands_refuse_it_before_anything_is_started(tiny, tmp_path):
    config = config_of(tiny, tmp_path, training_limit=999)
    file = tmp_path / "config.json"
    file.write_text(config.model_dump_json())
    message = f"proxykd: corpus.training_limit is 999, but {there(config)} training records are there"
    for command in ("run", "plan", "preview"):
        told = CliRunner().invoke(main, [command, str(file)])
        assert told.exit_code == 2, told.output
        assert message in told.stderr
    run = RunDirectory.create(config)
    assert sorted(path.name for path in run.root.iterdir()) == ["config.json"]
