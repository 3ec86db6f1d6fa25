"""What the corpus on disk says of its records."""

from __future__ import annotations

import json

from proxykd.data.corpus_store import read_slice, write_corpus
from proxykd.data.ingest import Source
from proxykd.runs.run_directory import RunDirectory
from proxykd.text.corpus import Record, slice_of
from tests.small_run import run_config


def test_records_of_the_same_normalised_prompt_share_a_key(tiny, tmp_path):
    """Several samples of a prompt, and prompts that differ in case, white space or system message alone."""

    def asked(number, text, *before):
        messages = (*before, {"role": "user", "content": text.format(number)})
        name = f"{number}-{text}-{len(before)}"
        return Record(name, messages, f"It is {name}.")

    system = {"role": "system", "content": "Be brief."}
    told = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Yes?"}]
    ways = [("Which is {}?",), ("which  IS {}?",), ("Which is {}?", system)]
    records = [asked(number, *way) for number in range(60) for way in ways]
    other = [asked(number, "Which is {}?", *told) for number in range(60)]  # the same last turn, another conversation
    config = run_config(str(tiny), str(tmp_path / "runs"))
    run = RunDirectory.create(config)
    rows = [
        {"id": one.id, "messages": [*one.messages, {"role": "assistant", "content": one.completion}]}
        for one in [*records, *other]
    ]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_corpus(run, config, Source((str(tmp_path / "c.jsonl"),)), tiny)
    keys = {row["id"]: row["prompt_key"] for name in config.corpus.slices for row in read_slice(run, name)}
    assert len(keys) == 240
    for number in range(60):
        same = {keys[record.id] for record in records[3 * number : 3 * number + 3]}
        assert len(same) == 1
        assert keys[other[number].id] not in same
        assert len({slice_of(record.messages, config.corpus) for record in records[3 * number : 3 * number + 3]}) == 1
    assert len(set(keys.values())) == 120
