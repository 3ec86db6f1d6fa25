"""Prompts from every kind of place: files, folders, data sets of Hugging Face, corpora whose answers are left aside."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from proxykd.errors import CorpusError
from proxykd.text.corpus import read_prompts


def asked(source) -> list[str]:
    return [prompt.messages[-1]["content"] for prompt in read_prompts(source)]


def test_a_folder_is_all_its_files_in_order(tmp_path):
    (tmp_path / "b.jsonl").write_text('{"prompt": "second"}\n')
    (tmp_path / "notes.txt").write_text("not a prompt")
    pq.write_table(pa.Table.from_pylist([{"prompt": "first"}]), tmp_path / "a.parquet")
    assert asked(tmp_path) == ["first", "second"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match=r"empty holds none of \*\.jsonl"):
        read_prompts(tmp_path / "empty")


def test_a_saved_data_set_of_hugging_face(tmp_path):
    import datasets

    rows = datasets.Dataset.from_list([{"prompt": "one"}, {"prompt": "two"}])
    rows.save_to_disk(tmp_path / "plain")
    datasets.DatasetDict({"train": rows}).save_to_disk(tmp_path / "parts")
    assert asked(tmp_path / "plain") == asked(tmp_path / "parts") == ["one", "two"]
    with pytest.raises(CorpusError, match="hf:nobody/nothing cannot be loaded"):
        read_prompts("hf:nobody/nothing")


def test_a_corpus_serves_without_its_answers(tmp_path):
    conversation = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    rows = [
        {"messages": [*conversation, {"role": "assistant", "content": "d"}]},
        {"messages": [{"role": "user", "content": "open"}]},
        {"system_prompt": "S", "question": "orca", "response": "r"},
        {"prompt": "\n\nHuman: nectar\n\nAssistant: ", "answers": [{"model": "gpt-4", "answer": "x"}]},
        {"prompt": "pair", "completion": "r"},
    ]
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert asked(path) == ["c", "open", "orca", "nectar", "pair"]
    prompts = read_prompts(path)
    assert [len(prompt.messages) for prompt in prompts] == [3, 1, 2, 1, 1]
    assert {prompt.completion for prompt in prompts} == {""}


def test_an_id_names_one_prompt(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"id": "a", "prompt": "Q"}\n{"id": "a", "prompt": "R"}\n')
    with pytest.raises(CorpusError, match="line 2: the id a is another prompt's already"):
        read_prompts(path)
    path.write_text('{"prompt": "Q"}\nnot json\n')
    with pytest.raises(CorpusError, match="line 2: not JSON"):
        read_prompts(path)


@pytest.mark.parametrize("name", ["text.jsonl", "text.jsonl.gz", "text.parquet"])
def test_a_pointer_of_git_lfs_is_no_text(tmp_path, name):
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 5356\n")
    with pytest.raises(CorpusError, match=rf"{name} is a Git-LFS pointer"):
        read_prompts(tmp_path / name)
