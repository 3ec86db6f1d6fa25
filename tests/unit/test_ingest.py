"""A corpus block by block: the same bytes as from a list of all records, whatever dies, and however it is read."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from proxykd.data import corpus_blocks, ingest
from proxykd.data.corpus_segments import source_of
from proxykd.data.corpus_store import manifest, write_corpus
from proxykd.errors import CorpusError, IntegrityError, RunStoppedError, StorageError
from proxykd.runs.run_directory import RunDirectory
from proxykd.text import sources
from proxykd.text.chat import ChatFormat
from tests.forks import forks
from tests.plain_corpus import write_plain
from tests.small_run import run_config
from tests.tiny_model import WORDS

SPLIT = {"validation": 0.15, "test": 0.15, "warmup": 0.2, "alignment": 0.4, "distillation": 0.4}


def rows(count: int = 600, seed: int = 5) -> list[str]:
    """Lines of every kind that a corpus has, good and bad: repeated texts and ids, thoughts, log-probs, other models."""
    chance = random.Random(seed)
    text = lambda most: " ".join(chance.choices([*WORDS, "naïve", "ﬁne", "<|im_end|>"], k=chance.randint(1, most)))  # noqa: E731
    lines: list[str] = []
    given: list[dict] = []
    for _ in range(count):
        row = {"prompt": text(9), "completion": text(25)}
        if given and chance.random() < 0.2:
            earlier = chance.choice(given)
            row = {"prompt": earlier["prompt"].upper(), "completion": chance.choice([earlier["completion"], text(5)])}
        if chance.random() < 0.3:
            row["id"] = f"id-{chance.randint(0, count // 2)}"
        if chance.random() < 0.1:
            tokens = row["completion"].split(" ")
            tokens = [token + " " * (i + 1 < len(tokens)) for i, token in enumerate(tokens)]
            row["top_logprobs"] = [{"token": token, "top": [[token, -0.5], ["x", -1.5]]} for token in tokens]
        elif chance.random() < 0.1:
            row["completion"] = f"<think>{text(3)}</think>\n{row['completion']}"
        if chance.random() < 0.1:
            row["finish_reason"] = "length"
        given.append(row)
        bad = chance.random()
        other = {"prompt": "\n\nHuman: Q\n\nAssistant: ", "answers": [{"model": "llama", "answer": "no"}]}
        lines.append("{torn" if bad < 0.02 else json.dumps(other) if bad < 0.04 else json.dumps(row))
    return lines


def config_of(tiny, folder, path, **corpus):
    settings = {"path": str(path), "max_length": 64, "shard_records": 16, "split": SPLIT, "max_bad_share": 0.5}
    return run_config(str(tiny), str(folder / "runs"), corpus={**settings, **corpus})


@pytest.fixture
def small(monkeypatch):
    """Many blocks and buckets, though there are few records."""
    monkeypatch.setattr(sources, "BLOCK_ROWS", 37)
    monkeypatch.setattr(ingest, "BUCKET_RECORDS", 40)
    monkeypatch.setattr(corpus_blocks, "BATCH_ROWS", 4)


@pytest.fixture
def jsonl(tmp_path):
    (tmp_path / "c.jsonl").write_text("".join(f"{line}\n" for line in rows()))
    return tmp_path / "c.jsonl"


def made(config, tiny, **how):
    run = RunDirectory.create(config)
    write_corpus(run, config, source_of(config), tiny, **how)
    return run


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.parquet"))}


class Threads(ingest.Here):
    """Blocks and buckets are made in any order."""

    def map(self, work, items):
        with ThreadPoolExecutor(5) as pool:
            yield from pool.map(work, items)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"limit": 200},
        {"training_limit": 90},
        {"whole_text": True, "training_limit": 50, "limit": 300, "reasoning": "drop_record"},
        {"overlong": "truncate", "max_length": 40, "reasoning": "train"},
    ],
)
def test_every_shard_is_byte_for_byte_that_of_all_records_in_a_list(small, tiny, tokenizer, tmp_path, jsonl, settings):
    config = config_of(tiny, tmp_path, jsonl, **settings)
    run = made(config, tiny)
    told = write_plain(tmp_path / "plain", config, ChatFormat(tokenizer))
    assert files(run.corpus) == files(tmp_path / "plain")
    facts = manifest(run)
    assert len(files(run.corpus)) > 5
    left_out = Counter({reason: count for reason, count in told["dropped"].items() if count})
    assert Counter(facts["dropped"]) + Counter(truncated=facts["truncated"]) == left_out
    for key in ("refused", "bad_lines", "thoughts"):
        assert facts[key] == told[key]
    assert not run.ingest.exists()


def test_neither_the_form_of_the_source_nor_the_workers_matter(small, tiny, tmp_path, jsonl):
    expected = files(made(config_of(tiny, tmp_path / "plain", jsonl), tiny).corpus)
    lines = jsonl.read_text().splitlines(keepends=True)
    with gzip.open(tmp_path / "c.jsonl.gz", "wt") as file:
        file.writelines(lines)
    text = "".join(lines).encode()
    packed = [pa.Codec("zstd").compress(part, asbytes=True) for part in (text[:9000], text[9000:])]  # two frames
    (tmp_path / "c.jsonl.zst").write_bytes(b"".join(packed))
    (tmp_path / "folder").mkdir()
    for number in range(3):
        (tmp_path / "folder" / f"p{number}.jsonl").write_text("".join(lines[200 * number : 200 * (number + 1)]))
    good = [json.loads(line) for line in lines if line != "{torn\n"]
    names = ("id", "prompt", "completion", "finish_reason", "answers", "top_logprobs")
    columns = {name: [row.get(name) for row in good] for name in names}
    columns["top_logprobs"] = [top and json.dumps(top) for top in columns["top_logprobs"]]
    kept = [i for i, answers in enumerate(columns.pop("answers")) if answers is None]
    pq.write_table(pa.table(columns).take(kept), tmp_path / "c.parquet", row_group_size=100)
    for path in ("c.jsonl.gz", "c.jsonl.zst", "folder", "c.parquet"):
        found = made(config_of(tiny, tmp_path / f"of-{path}", tmp_path / path), tiny, spread=Threads())
        assert files(found.corpus) == expected, path


def test_what_a_killed_attempt_has_made_whole_stands(small, tiny, tmp_path, jsonl, monkeypatch):
    """Stopped at every point of reading, then of writing, and each time gone on from there."""
    expected = files(made(config_of(tiny, tmp_path / "whole", jsonl), tiny).corpus)
    config = config_of(tiny, tmp_path / "killed", jsonl)
    made_blocks, written, at = [], [], 0
    tokenised, gathered = corpus_blocks.BlockWriter._table, ingest.gather
    monkeypatch.setattr(corpus_blocks.BlockWriter, "_table", lambda *given: made_blocks.append(0) or tokenised(*given))
    monkeypatch.setattr(ingest, "gather", lambda *given: written.append(0) or gathered(*given))
    while True:
        seen = []

        def progress(*told, seen=seen, stop=at):
            seen.append(told)
            if len(seen) > stop:
                raise RunStoppedError("killed")

        try:
            run = made(config, tiny, progress=progress)
            break
        except RunStoppedError:
            at += 1
    assert files(run.corpus) == expected
    blocks, buckets = sum(unit == "MiB of text" for *_, unit in seen), sum(unit == "records" for *_, unit in seen)
    assert blocks + buckets == at > 20
    assert len(made_blocks) == blocks
    assert buckets <= len(written) <= 2 * buckets
    done = [one for one, _, unit in seen if unit == "MiB of text"]
    assert done == sorted(done)
    assert done[-1] * 2**20 == pytest.approx(jsonl.stat().st_size)


def killed(config, tiny, after):
    """Makes the corpus in a process that is killed at the `after`th sign of progress."""
    sources.BLOCK_ROWS, ingest.BUCKET_RECORDS, corpus_blocks.BATCH_ROWS = 37, 40, 4
    left = iter(range(after))
    made(config, tiny, progress=lambda *_: next(left, None) is None and os.kill(os.getpid(), signal.SIGKILL))


def test_a_process_that_is_killed_is_gone_on_from(small, tiny, tmp_path, jsonl):
    expected = files(made(config_of(tiny, tmp_path / "whole", jsonl), tiny).corpus)
    config = config_of(tiny, tmp_path / "killed", jsonl)
    for after in (9, 20):  # as it reads, and as it writes
        process = forks().Process(target=killed, args=(config, tiny, after))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert files(RunDirectory.create(config).corpus).keys() < expected.keys()
    assert files(made(config, tiny).corpus) == expected


@pytest.mark.parametrize("name", ["rows", "index"])
def test_a_block_that_was_torn_is_made_again(small, tiny, tmp_path, jsonl, name):
    config, expected = (
        config_of(tiny, tmp_path, jsonl),
        files(made(config_of(tiny, tmp_path / "w", jsonl), tiny).corpus),
    )
    with pytest.raises(RunStoppedError):
        made(config, tiny, progress=lambda done, total, unit: unit == "records" and stopped())
    run = RunDirectory.create(config)
    (run.ingest / f"{name}-000003.arrow").write_bytes(b"torn")
    assert files(made(config, tiny).corpus) == expected


def stopped():
    raise RunStoppedError("stopped, as asked")


def test_of_another_source_nothing_stands(small, tiny, tmp_path, jsonl):
    config = config_of(tiny, tmp_path, jsonl)
    with pytest.raises(RunStoppedError):
        made(config, tiny, progress=lambda done, total, unit: unit == "records" and stopped())
    assert files(RunDirectory.create(config).corpus)
    jsonl.write_text("".join(f"{line}\n" for line in rows(300, seed=8)))
    found = files(made(config, tiny).corpus)
    assert found == files(made(config_of(tiny, tmp_path / "new", jsonl), tiny).corpus)


def test_a_corpus_of_one_record_lacks_its_slices_and_says_so(tiny, tmp_path):
    (tmp_path / "c.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    with pytest.raises(CorpusError, match=r"1 usable records \(dropped: none\) leave the slice\(s\) .* empty"):
        made(config_of(tiny, tmp_path, tmp_path / "c.jsonl"), tiny)


def test_a_file_that_was_cut_off_is_named_with_the_line(tiny, tmp_path, jsonl):
    packed = gzip.compress(jsonl.read_bytes())
    (tmp_path / "c.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(CorpusError, match=r"c\.jsonl\.gz cannot be unpacked after line \d+: .*; fetch it anew"):
        made(config_of(tiny, tmp_path, tmp_path / "c.jsonl.gz"), tiny)


def test_it_is_made_in_an_object_store_alike(small, store, tiny, tmp_path, jsonl):
    config = config_of(tiny, tmp_path, jsonl)
    run = made(config.model_copy(update={"runs_dir": str(store)}), tiny)
    assert {path.name: path.read_bytes() for path in (run.corpus / "alignment").glob("*.parquet")} == {
        path.name: path.read_bytes() for path in (made(config, tiny).corpus / "alignment").glob("*.parquet")
    }
    assert not (run.root / "ingest").exists()


def test_a_disk_too_small_is_refused_with_what_is_needed_and_free(tiny, tmp_path, jsonl, monkeypatch):
    monkeypatch.setattr(ingest.shutil, "disk_usage", lambda _: SimpleNamespace(free=20_000))
    needed = f"{ingest.DISK_A_BYTE * jsonl.stat().st_size / 2**30:.1f} GiB of disk"
    with pytest.raises(StorageError, match=rf"runs.*takes up to {needed} .* 0\.0 GiB are free: free space there or"):
        made(config_of(tiny, tmp_path, jsonl), tiny)


def test_a_block_that_vanished_is_named(small, tiny, tmp_path, jsonl):
    config = config_of(tiny, tmp_path, jsonl)

    def progress(done, total, unit):
        for path in RunDirectory.create(config).ingest.glob("rows-000002.*"):
            path.unlink()

    with pytest.raises(IntegrityError, match=r"rows-000002\.arrow .*resume the run"):
        made(config, tiny, progress=progress)
    assert files(made(config, tiny).corpus)


def test_records_that_the_template_refuses_are_listed_in_the_sources_order(small, tiny, tmp_path):
    given = [{"id": str(i), "prompt": f"{WORDS[i % 20]} {i}", "completion": "a"} for i in range(120)]
    call = [{"type": "function", "function": {"name": "clock", "arguments": "{}"}}]
    for i in (3, 50, 110):
        asked = [{"role": "user", "content": f"When {i}?"}]
        given[i] = {"id": str(i), "messages": [*asked, {"role": "assistant", "content": "", "tool_calls": call}]}
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    config = config_of(tiny, tmp_path, tmp_path / "c.jsonl")
    found = manifest(made(config, tiny, spread=Threads()))
    assert [one["id"] for one in found["refused"]] == ["3", "50", "110"]
    assert found["dropped"] == {"template_refuses": 3}
    with pytest.raises(CorpusError, match=r"cannot render 3 of 120 records, above corpus\.max_bad_share 0\.01"):
        made(config_of(tiny, tmp_path / "strict", tmp_path / "c.jsonl", max_bad_share=0.01), tiny)
