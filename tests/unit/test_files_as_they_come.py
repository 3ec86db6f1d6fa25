"""Files and rows as others have made them: read as they are meant, or said to be bad, with file, line and reason."""

from __future__ import annotations

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner

from proxykd.collection.screening import Benchmarks
from proxykd.config import CorpusConfig
from proxykd.errors import CorpusError
from proxykd.text.corpus import read_prompts
from services.cli.main import main
from tests.plain_corpus import read_corpus

GOOD = {"prompt": "Which?", "completion": "This."}
U, A = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
S = {"role": "system", "content": "S"}
LINE = json.dumps(GOOD).encode() + b"\n"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 5356\n"
TRANSCRIPT = "\n\nHuman: Q\n\nAssistant: "


def human(text):
    return {"from": "human", "value": text}


def gpt(text):
    return {"from": "gpt", "value": text}


READ = {
    "ShareGPT": ({"conversations": [human("Q"), gpt("A")]}, "user: Q", "A"),
    "ShareGPT with a system turn": (
        {"conversations": [{"from": "system", "value": "S"}, human("Q"), gpt("A")]}, "system: S | user: Q", "A",
    ),
    "ShareGPT with its system beside": ({"system": "S", "conversations": [human("Q"), gpt("A")]}, "system: S | user: Q", "A"),
    "ShareGPT that begins with GPT": ({"conversations": [gpt("Hi"), human("Q"), gpt("A")]}, "assistant: Hi | user: Q", "A"),
    "ShareGPT in OpenAI's words": ({"conversations": [U, A]}, "user: Q", "A"),
    "conversations as JSON": ({"conversations": json.dumps([human("Q"), gpt("A")])}, "user: Q", "A"),
    "messages as JSON": ({"messages": json.dumps([U, A])}, "user: Q", "A"),
    "a table of both kinds": (
        {"messages": [{**U, "from": None}, {"role": None, "content": None, "from": "gpt", "value": "A"}]}, "user: Q", "A",
    ),
    "messages that begin with the assistant": ({"messages": [A, U, A]}, "assistant: A | user: Q", "A"),
    "a developer's message": ({"messages": [{**S, "role": "developer"}, U, A]}, "system: S | user: Q", "A"),
    "TRL": ({"prompt": [S, U], "completion": [A]}, "system: S | user: Q", "A"),
    "TRL with a text for a completion": ({"prompt": [U], "completion": "A"}, "user: Q", "A"),
    "TRL with a text for a prompt": ({"prompt": "Q", "completion": [A]}, "user: Q", "A"),
    "TRL with a longer completion": ({"prompt": [U], "completion": [A, U, A]}, "user: Q | assistant: A | user: Q", "A"),
    "null messages beside a pair": ({"messages": None, "prompt": "Q", "completion": "A"}, "user: Q", "A"),
    "no messages beside a pair": ({"messages": [], "prompt": "Q", "completion": "A"}, "user: Q", "A"),
    "a null completion beside a response": ({"prompt": "Q", "completion": None, "response": "A"}, "user: Q", "A"),
    "system_prompt beside prompt": ({"system_prompt": "S", "prompt": "Q", "completion": "A"}, "system: S | user: Q", "A"),
    "system_prompt beside messages": ({"system_prompt": "S", "messages": [U, A]}, "system: S | user: Q", "A"),
    "OpenOrca without a system prompt": ({"system_prompt": None, "question": "Q", "response": "A"}, "user: Q", "A"),
    "answers that are a quiz's": ({"prompt": "Q", "completion": "A", "answers": ["x", "y"]}, "user: Q", "A"),
    "answers that are SQuAD's": ({"prompt": "Q", "completion": "A", "answers": {"text": ["x"]}}, "user: Q", "A"),
    "answers that are none": ({"prompt": "Q", "completion": "A", "answers": []}, "user: Q", "A"),
    "Nectar": ({"prompt": TRANSCRIPT, "answers": [{"model": "gpt-4", "answer": "A"}]}, "user: Q", "A"),
    "log-probs that were asked for": ({"prompt": "Q", "completion": "A", "top_logprobs": 5}, "user: Q", "A"),
    "no log-probs that were asked for": ({"prompt": "Q", "completion": "A", "top_logprobs": 0}, "user: Q", "A"),
    "log-probs of another form": ({"prompt": "Q", "completion": "A", "top_logprobs": [{"A": -0.1}]}, "user: Q", "A"),
    "log-probs that are torn": ({"prompt": "Q", "completion": "A", "top_logprobs": '[{"tok'}, "user: Q", "A"),
    "log-probs that are no numbers": (
        {"prompt": "Q", "completion": "A", "top_logprobs": [{"token": "A", "top": [["A", None]]}]}, "user: Q", "A",
    ),
}  # fmt: skip
BAD = {
    "half of a pair of surrogates": ('{"prompt": "Q\\ud83d", "completion": "A"}', r"half of a surrogate pair \('\\ud83d'\)"),
    "the same within JSON within JSON": (
        json.dumps({"messages": '[{"role": "user", "content": "\\udc00"}]'}), r"half of a surrogate pair",
    ),
    "another encoding": ('{"prompt": "é", "completion": "A"}'.encode("latin-1"), "not JSON: 'utf-8' codec"),
    "nested 200,000 deep": (f'{{"prompt": "Q", "x": {"[" * 200_000}', "not JSON: nested too deeply"),
    "a number of 5,000 digits": (f'{{"prompt": {"9" * 5000}}}', "not JSON: "),
    "a list": ("[1]", "a list, not an object"),
    "only the assistant's": ({"messages": [A]}, "the prompt is empty"),
    "no one's message": ({"messages": [{"content": "Q"}, A]}, "a message of the role None"),
    "a function call of ShareGPT's": ({"conversations": [human("Q"), {"from": "function_call", "value": "{}"}]}, "'function_call'"),
    "messages that are torn": ({"messages": '[{"role'}, "not JSON"),
    "messages that are none": ({"messages": 7}, "`messages` is missing, empty or no list"),
    "a message that is none": ({"messages": ["Q", "A"]}, "a message is a str, not an object"),
    "a role that is a list": ({"messages": [{"role": ["user"], "content": "Q"}, A]}, "a message of the role"),
    "a completion that is a number": ({"prompt": "Q", "completion": 7}, "the completion is a int, not text"),
    "a completion of the user's": ({"prompt": "Q", "completion": [U]}, "is not the assistant's"),
    "a system message that is a list": ({**GOOD, "system": ["S"]}, "the system message is a list"),
    "calls that are none": ({"messages": [U, {**A, "tool_calls": 5}]}, "`tool_calls` is not a list of functions"),
    "tools that are torn": ({"messages": [U, A], "tools": "{"}, "not JSON"),
    "tools without a name": ({"messages": [U, A], "tools": [{"function": "clock"}]}, "`tools` is not a list of functions"),
}  # fmt: skip


def written(path, *rows):
    path.write_bytes(b"".join(row if isinstance(row, bytes) else (row if isinstance(row, str) else json.dumps(row)).encode() + b"\n" for row in rows))  # fmt: skip
    return path


def corpus(path, share=0.6):
    return read_corpus(CorpusConfig(path=str(path), max_bad_share=share))


def turns(record):
    return " | ".join(f"{m['role']}: {m['content']}" for m in record.messages)


@pytest.mark.parametrize("kind", READ)
def test_a_row_whose_meaning_is_plain_is_read(kind, tmp_path):
    row, before, completion = READ[kind]
    [record] = corpus(written(tmp_path / "c.jsonl", row)).records
    assert (turns(record), record.completion) == (before, completion)
    assert record.top_logprobs is None
    [prompt] = read_prompts(tmp_path / "c.jsonl")
    assert turns(prompt) == before


@pytest.mark.parametrize("kind", BAD)
def test_any_other_is_a_bad_line_that_is_named_and_holds_no_good_one_back(kind, tmp_path):
    row, reason = BAD[kind]
    row = row + b"\n" if isinstance(row, bytes) else row
    reading = corpus(written(tmp_path / "c.jsonl", GOOD, row, {"prompt": "Or?", "completion": "That."}))
    assert [r.completion for r in reading.records] == ["This.", "That."]
    [bad] = reading.bad_lines
    assert bad["line"] == "line 2"
    with pytest.raises(CorpusError, match=rf"(?s)1 of 3 lines of .*c\.jsonl cannot be used.*line 2: .*{reason}"):
        corpus(tmp_path / "c.jsonl", share=0.1)
    if "completion" not in kind:  # which prompts need not have
        with pytest.raises(CorpusError, match=rf"c\.jsonl line 2: .*{reason}"):
            read_prompts(tmp_path / "c.jsonl")


def test_a_row_of_nectar_without_gpt_4_is_a_prompt_and_no_record(tmp_path):
    row = {"prompt": TRANSCRIPT, "answers": [{"model": "llama", "answer": "no"}]}
    path = written(tmp_path / "c.jsonl", row)
    assert [turns(prompt) for prompt in read_prompts(path)] == ["user: Q"]
    with pytest.raises(CorpusError, match=r"no usable record \(left out: 1 other_model\)"):
        corpus(path)


@pytest.mark.parametrize("none", [0, "", " ", None, False, float("nan")])
def test_ids_that_name_nothing_are_none(none, tmp_path):
    rows = [{"id": none, "prompt": f"Q{n}", "completion": "A"} for n in range(200)]
    path = written(tmp_path / "c.jsonl", *rows)
    assert len(corpus(path).records) == len(read_prompts(path)) == 200
    assert not +corpus(path).dropped


@pytest.mark.parametrize("end", [b"", b"\n", b"\n\n  \n\r\n"])
@pytest.mark.parametrize("name", ["c.jsonl", "c.jsonl.gz"])
def test_blank_lines_at_the_end_are_none(end, name, tmp_path):
    data = LINE + b"\xef\xbb\xbf" + LINE.replace(b"Which", b"Who").rstrip() + end
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert len(corpus(tmp_path / name, share=0).records) == 2


def parquet(rows):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("name", ["c.jsonl", "c.jsonl.gz", "c.jsonl.zst", "c.parquet"])
@pytest.mark.parametrize(
    "data",
    [LINE, gzip.compress(LINE), pa.Codec("zstd").compress(LINE, asbytes=True), parquet([GOOD])],
    ids=["lines", "gzip", "zstd", "parquet"],
)
def test_a_file_is_what_it_holds_whatever_its_name(name, data, tmp_path):
    (tmp_path / name).write_bytes(data)
    assert [r.completion for r in corpus(tmp_path / name).records] == ["This."]


LONG = b"".join(json.dumps({"prompt": f"Q {n} {n * n}", "completion": "A"}).encode() + b"\n" for n in range(4000))
ROWS = [json.loads(line) for line in LONG.splitlines()]
UNREADABLE = {
    "a torn gzip": ("c.jsonl.gz", gzip.compress(LONG)[:9000], r"cannot be unpacked after line \d+: .*fetch it anew"),
    "a broken gzip": ("c.jsonl.gz", gzip.compress(LONG)[:3000] + b"x" * 3000, r"cannot be unpacked after line \d+"),
    "a torn zstd": ("c.jsonl.zst", pa.Codec("zstd").compress(LONG, asbytes=True)[:3000], r"cannot be unpacked after line"),
    "a torn Parquet": ("c.parquet", parquet(ROWS)[:-9], r"cannot be read: .*fetch it anew"),
    "a broken Parquet": ("c.parquet", b"PAR1" + b"x" * 3000 + parquet(ROWS)[3004:], r"cannot be read: .*fetch it anew"),
    "an empty Parquet": ("c.parquet", b"", r"is empty, which no \.parquet is"),
    "an empty gzip": ("c.jsonl.gz", b"", r"is empty, which no \.gz is"),
    "a pointer": ("c.jsonl", LFS, r"is a Git-LFS pointer.*git lfs pull"),
    "a pointer to a Parquet": ("c.parquet", LFS, r"is a Git-LFS pointer"),
}  # fmt: skip


def config_of(tmp_path, **corpus_keys):
    model = {"source": str(tmp_path)}
    raw = {"name": "t", "corpus": corpus_keys, "proxy": model, "student": model, "runs_dir": str(tmp_path / "runs")}
    raw["teacher"] = {"base_url": "https://host/v1", "model": "m"}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(raw))
    return str(tmp_path / "c.yaml")


@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_file_that_cannot_be_read_is_named_by_whatever_reads_it(kind, tmp_path):
    name, data, reason = UNREADABLE[kind]
    (tmp_path / "data").mkdir()
    for path in (tmp_path / "data" / "a.jsonl", tmp_path / "data" / name):
        path.write_bytes(LINE if path.name == "a.jsonl" else data)
    for read in (corpus, read_prompts):
        with pytest.raises(CorpusError, match=rf"data/{name} {reason}"):
            read(tmp_path / "data")
    told = CliRunner().invoke(main, ["plan", config_of(tmp_path, path=str(tmp_path / "data"))])
    assert (told.exit_code, told.output.count("\n")) == (2, 1), told.output
    assert f"data/{name}" in told.output


@pytest.mark.parametrize("key", ["path", "prompts"])
def test_config_check_finds_what_is_absent_or_unreadable(key, tmp_path):
    file = tmp_path / "none.jsonl"
    for state in ("absent", "a pointer", "there"):
        if state != "absent":
            file.write_bytes(LFS if state == "a pointer" else LINE)
        told = CliRunner().invoke(main, ["config", "check", config_of(tmp_path, **{key: str(file)})])
        assert told.exit_code == (0 if state == "there" else 2), told.output
        assert {"absent": f"corpus.{key} {file} does not exist", "a pointer": "git lfs pull", "there": "valid"}[
            state
        ] in told.output
    told = CliRunner().invoke(main, ["config", "check", config_of(tmp_path, path=str(tmp_path / "later"), follow=5)])
    assert told.exit_code == 0, told.output
    missing = config_of(tmp_path, **{key: str(file), "unlabelled": str(tmp_path / "more.jsonl")})
    for command in (["config", "check"], ["plan"]):
        told = CliRunner().invoke(main, [*command, missing])
        assert told.exit_code == 2
        assert "more.jsonl does not exist" in told.output


def test_of_a_folder_only_what_is_data_is_read_and_what_hangs_is_named(tmp_path):
    written(tmp_path / "x.jsonl", GOOD)
    (tmp_path / "._x.jsonl").write_bytes(b"\0\5\26\7\0\2\0\0Mac OS X")
    (tmp_path / "dir.jsonl").mkdir()
    assert len(corpus(tmp_path).records) == 1
    (tmp_path / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    with pytest.raises(CorpusError, match=r"gone\.jsonl cannot be read: No such file"):
        corpus(tmp_path)
    with pytest.raises(CorpusError, match="cannot be read: File name too long"):
        corpus(tmp_path / ("x" * 300))
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "dataset_info.json").write_text("{")
    with pytest.raises(CorpusError, match="saved cannot be loaded as a saved data set"):
        corpus(tmp_path / "saved")


def test_a_column_of_bytes_that_are_no_text_costs_its_own_row_alone(tmp_path):
    buffers = pa.array([b"Which?", b"\xff\xfe", b"Or?"], pa.binary()).buffers()
    texts = pa.StringArray.from_buffers(3, buffers[1], buffers[2])
    pq.write_table(pa.table({"prompt": texts, "completion": ["a", "b", "c"]}), tmp_path / "c.parquet")
    reading = corpus(tmp_path / "c.parquet")
    assert [r.completion for r in reading.records] == ["a", "c"]
    assert [b["line"] for b in reading.bad_lines] == ["line 2"]


def test_questions_that_prompts_are_held_against_are_read_alike(tmp_path):
    question = "How many legs does an ordinary spider have in all ?"
    file = written(tmp_path / "q.jsonl", {"question": question}, "{torn")
    with pytest.raises(CorpusError, match=r"quality\.benchmarks .*q\.jsonl line 2: not JSON"):
        Benchmarks([str(file)])
    (tmp_path / "q.txt").write_bytes(question.encode() + b"\n\xff\n")
    with pytest.raises(CorpusError, match=r"quality\.benchmarks .*q\.txt line 2: not UTF-8"):
        Benchmarks([str(tmp_path / "q.txt")])
    written(tmp_path / "q.jsonl", {"question": question}, "")
    assert Benchmarks([str(tmp_path / "q.jsonl")]).within(question)
