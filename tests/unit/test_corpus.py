"""Reading every layout, refusing bad lines, and a split that survives growth."""

from __future__ import annotations

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from proxykd.config import CorpusConfig
from proxykd.errors import CorpusError
from proxykd.text.corpus import normalised_prompt, parse_row, read_prompts, slice_of
from proxykd.text.sources import BadRow
from tests.plain_corpus import read_corpus


def write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return CorpusConfig(path=str(path), max_bad_share=0.5)


ROW = {"prompt": "What is red?", "completion": "A colour."}


@pytest.mark.parametrize(
    ("row", "roles", "completion"),
    [
        (ROW, ["user"], "A colour."),
        ({"prompt": "Q", "response": "A"}, ["user"], "A"),
        ({"prompt": "Q", "completion": "A", "system": "Be brief."}, ["system", "user"], "A"),
        ({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}, ["user"], "A"),
        (
            {"messages": [{"role": r, "content": c} for r, c in (("user", "Q"), ("assistant", "B"), ("user", "C"), ("assistant", "A"))]},
            ["user", "assistant", "user"],
            "A",
        ),
        ({"system_prompt": "S", "question": "Q", "response": "A", "id": "flan.1"}, ["system", "user"], "A"),
        ({"system_prompt": "", "question": "Q", "response": "A"}, ["user"], "A"),
        (
            {"prompt": "\n\nHuman: Q\n\nAssistant: ", "answers": [{"model": "llama", "answer": "no"}, {"model": "gpt-4", "answer": "A"}]},
            ["user"],
            "A",
        ),
        (
            {"prompt": "\n\nHuman: Q\n\nAssistant: B\n\nHuman: C\n\nAssistant: ", "answers": [{"model": "gpt-4-0314", "answer": "A"}]},
            ["user", "assistant", "user"],
            "A",
        ),
    ],
)  # fmt: skip
def test_layouts(row, roles, completion):
    record = parse_row(row)
    assert [m["role"] for m in record.messages] == roles
    assert record.completion == completion


def test_nectar_without_gpt4_is_another_models_row(tmp_path):
    nectar = {"prompt": "\n\nHuman: Q\n\nAssistant: ", "answers": [{"model": "llama", "answer": "no"}]}
    reading = read_corpus(write(tmp_path / "n.jsonl", [nectar, ROW]))
    assert reading.dropped["other_model"] == 1
    assert len(reading.records) == 1


def test_a_completion_that_ended_by_length_is_not_stopped():
    assert not parse_row({**ROW, "finish_reason": "length"}).stopped
    assert parse_row({**ROW, "finish_reason": "stop"}).stopped


def test_bad_lines_are_counted_with_numbers_and_duplicates_dropped(tmp_path):
    rows = [ROW, "{torn", "", {"prompt": "x"}, {"prompt": " ", "completion": "y"}, {**ROW, "prompt": "what  is RED?"},
            {"prompt": "z", "completion": ""}, {"prompt": "New", "completion": "1"}, {"prompt": "New", "completion": "2"}]  # fmt: skip
    config = write(tmp_path / "c.jsonl", rows).model_copy(update={"max_bad_share": 0.9})
    reading = read_corpus(config)
    assert [b["line"] for b in reading.bad_lines] == [f"line {n}" for n in (2, 3, 4, 5, 7)]
    assert reading.bad_lines[1]["reason"] == "empty line"
    assert dict(reading.dropped) == {"duplicate": 1, "bad_line": 5}
    assert [r.completion for r in reading.records] == ["A colour.", "1", "2"]
    with pytest.raises(CorpusError, match=r"(?s)5 of 9 lines.*line 2: not JSON") as error:
        read_corpus(config.model_copy(update={"max_bad_share": 0.01}))
    assert "raise the share" in str(error.value)


def test_duplicate_ids_are_counted(tmp_path):
    reading = read_corpus(
        write(tmp_path / "c.jsonl", [{**ROW, "id": "1"}, {"prompt": "b", "completion": "c", "id": "1"}])
    )
    assert reading.dropped["duplicate_id"] == 1


def test_missing_and_empty_files(tmp_path):
    with pytest.raises(
        CorpusError, match=r"corpus\.path .*no\.jsonl does not exist; set it to a file, a folder or hf:NAME"
    ):
        read_corpus(CorpusConfig(path=str(tmp_path / "no.jsonl")))
    with pytest.raises(CorpusError, match="holds no usable record"):
        read_corpus(write(tmp_path / "empty.jsonl", []))


def test_gzip_and_parquet_read_as_jsonl(tmp_path):
    rows = [{**ROW, "id": str(i), "prompt": f"q{i}"} for i in range(5)]
    plain = read_corpus(write(tmp_path / "c.jsonl", rows)).records
    with gzip.open(tmp_path / "c.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "c.parquet")
    assert read_corpus(CorpusConfig(path=str(tmp_path / "c.jsonl.gz"))).records == plain
    assert read_corpus(CorpusConfig(path=str(tmp_path / "c.parquet"))).records == plain
    assert len(read_corpus(CorpusConfig(path=str(tmp_path / "c.parquet"), limit=2)).records) == 2


def user(text, system=None):
    messages = [{"role": "user", "content": text}]
    return tuple([{"role": "system", "content": system}, *messages] if system else messages)


def test_the_split_is_by_normalised_prompt_and_near_its_shares():
    corpus = CorpusConfig()
    assert slice_of(user("What is RED?"), corpus) == slice_of(user("  what is\nred? ", system="Be brief."), corpus)
    assert normalised_prompt(user("What is RED?")) == normalised_prompt(user("  what is\nred? "))
    names = [slice_of(user(f"question {i}"), corpus) for i in range(20_000)]
    shares = {name: names.count(name) / len(names) for name in set(names)}
    expected = {"validation": 0.05, "test": 0.05, "warmup": 0.09, "alignment": 0.405, "distillation": 0.405}
    assert shares == pytest.approx(expected, abs=0.012)
    assert normalised_prompt(user("ﬁne")) == "user:fine"


def test_prompts_to_collect(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"id": "a", "prompt": "Q"}\n{"prompt": "R", "system": "S"}\n')
    first, second = read_prompts(path)
    assert (first.id, first.completion) == ("a", "")
    assert second.messages[0] == {"role": "system", "content": "S"}
    path.write_text('{"prompt": ""}\n')
    with pytest.raises(CorpusError, match="line 1: the prompt is empty"):
        read_prompts(path)


THINKING = {"prompt": "Q", "completion": "<think>\nSix and one.\n</think>\n\nSeven."}
BESIDE = {"prompt": "Q2", "completion": "Seven.", "reasoning_content": "Six and one."}
TAGGED = {"prompt": "Q3", "completion": "The tags <think> and </think> hold thoughts."}


@pytest.mark.parametrize(
    ("reasoning", "completions", "thoughts"),
    [
        ("answer_only", ["Seven.", "Seven.", TAGGED["completion"]], [None, None, None]),
        ("train", ["Seven.", "Seven.", TAGGED["completion"]], ["Six and one.", "Six and one.", None]),
        ("drop_record", [TAGGED["completion"]], [None]),
    ],
)
def test_thoughts_are_left_out_trained_or_dropped_as_the_config_says(tmp_path, reasoning, completions, thoughts):
    endless = {"prompt": "Q4", "completion": "<think>\nSix and"}
    config = write(tmp_path / "c.jsonl", [THINKING, BESIDE, TAGGED, endless])
    reading = read_corpus(config.model_copy(update={"reasoning": reasoning}))
    assert [r.completion for r in reading.records] == completions
    assert [r.reasoning for r in reading.records] == thoughts
    lost = {"reasoning": 3} if reasoning == "drop_record" else {"thoughts_without_an_answer": 1}
    assert {k: n for k, n in reading.dropped.items() if n} == lost
    assert reading.thoughts == (0 if reasoning == "drop_record" else 2)


def test_earlier_turns_are_without_their_thoughts():
    turns = [("user", "Q"), ("assistant", "<think>hm</think>\nB"), ("user", "C <think>"), ("assistant", "A")]
    record = parse_row({"messages": [{"role": role, "content": content} for role, content in turns]})
    assert [m["content"] for m in record.messages] == ["Q", "B", "C <think>"]


def test_content_parts_are_joined_and_others_than_text_refused():
    parts = [{"type": "text", "text": "Is it "}, {"type": "text", "text": "seven?"}]
    reply = {"role": "assistant", "content": "A"}
    record = parse_row({"messages": [{"role": "user", "content": parts}, reply]})
    assert record.messages[0]["content"] == "Is it seven?"
    image = [*parts, {"type": "image_url", "image_url": {"url": "x"}}]
    with pytest.raises(BadRow, match="a content part of type image_url"):
        parse_row({"messages": [{"role": "user", "content": image}, reply]})


def test_calls_of_tools_are_kept_in_prompts_and_replies():
    call = {"id": "1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
    tools = [{"type": "function", "function": {"name": "clock"}}]
    asks = {"role": "assistant", "content": None, "tool_calls": [call]}
    told = {"role": "tool", "tool_call_id": "1", "content": "noon"}
    user = {"role": "user", "content": "When?"}
    record = parse_row({"messages": [user, asks, told, {"role": "assistant", "content": "Noon."}], "tools": tools})
    assert record.messages == (user, asks | {"content": ""}, told)
    assert record.tools == tuple(tools)
    record = parse_row({"messages": [user, asks], "tools": json.dumps(tools)})
    assert (record.completion, record.tool_calls, record.tools) == ("", (call,), tuple(tools))
    with pytest.raises(BadRow, match="the completion is empty"):
        parse_row({"messages": [user, {"role": "assistant", "content": ""}]})
