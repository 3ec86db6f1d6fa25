"""Rows, files and generations that nobody thought of: what is no good is counted or said, and nothing else is raised.

FUZZ=10000 python -m pytest tests/unit/test_fuzz_files.py tries that many of each.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import tempfile
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from proxykd.config import CorpusConfig
from proxykd.data.corpus_blocks import BlockWriter, Piece, read_index
from proxykd.errors import ProxykdError
from proxykd.evaluation.benchmarks import question_file
from proxykd.text.corpus import Reading, read_prompts, records_of
from proxykd.text.sources import Block, parsed
from tests.fuzzing import EXAMPLES, FUZZED, mutated
from tests.generations import GENERATIONS
from tests.unit.test_files_as_they_come import BAD, READ

TOOLS = {
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "When?"}]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "clock", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "1", "content": "noon"},
        {"role": "assistant", "content": "<think>so</think>Noon.", "reasoning_content": "so"},
    ],
    "tools": [{"type": "function", "function": {"name": "clock", "parameters": {}}}],
}  # fmt: skip
PLACES = {
    "id": "a", "prompt": "Which?", "completion": "A b", "finish_reason": "length", "system": "S",
    "top_logprobs": [{"token": "A", "top": [["A", -0.5], ["x", -1.5]]}, {"token": " b", "top": [[" b", -0.1]]}],
}  # fmt: skip
ROWS = [TOOLS, PLACES, *(row for row, *_ in READ.values()), *(row for row, _ in BAD.values() if isinstance(row, dict))]
QUESTION = {"id": "t/0", "question": "Which?", "choices": ["a", "b"], "answer": "B"}


def line_of(row) -> bytes:
    """As JSON writes it, escaped, or raw with half of a pair of surrogates as bytes that are no UTF-8."""
    return json.dumps(row).encode() + b"\n"


@settings(FUZZED, max_examples=max(1, EXAMPLES // 3))
@given(
    st.lists(mutated(ROWS), min_size=1, max_size=8),
    st.sampled_from(["auto", "messages", "completion", "openorca", "nectar"]),
)
def test_whatever_a_row_is_every_one_is_a_record_or_counted(tiny, rows, layout):
    config = CorpusConfig(path="c.jsonl", format=layout, max_length=64)
    with tempfile.TemporaryDirectory() as folder:
        block = Block("line", 1, [line_of(row) for row in rows], 0)
        BlockWriter(folder, str(tiny), config, 0)(Piece(0, 0, 0, block))
        found = read_index(folder, 0)
    assert len(found) == len(rows)
    for one in found:
        assert one["left_out"] or one["said"]
        assert one["detail"] or one["left_out"] in ("", "other_model", "reasoning", "thoughts_without_an_answer")


@FUZZED
@given(st.lists(mutated(ROWS), min_size=1, max_size=4))
def test_whatever_prompts_are_they_are_read_or_refused(rows):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "p.jsonl"
        path.write_bytes(b"".join(map(line_of, rows)))
        with contextlib.suppress(ProxykdError):
            for prompt in read_prompts(path):
                assert prompt.id.strip()
                assert json.dumps(asdict(prompt)).encode()


def as_parquet(rows) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


PLAIN = b"".join(line_of({"prompt": f"Q{n}", "completion": "A" * n}) for n in range(40))
FILES = [
    PLAIN,
    gzip.compress(PLAIN),
    pa.Codec("zstd").compress(PLAIN, asbytes=True),
    as_parquet([READ["ShareGPT"][0]] * 9),
    as_parquet([{"prompt": "Q", "completion": "A", "top_logprobs": json.dumps(PLACES["top_logprobs"])}] * 9),
]


@FUZZED
@given(st.data(), st.sampled_from(["c.jsonl", "c.jsonl.gz", "c.jsonl.zst", "c.parquet"]))
def test_whatever_bytes_a_file_has_it_is_read_or_named(data, name):
    content = data.draw(st.sampled_from(FILES))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content)))
        content = content[:at] + data.draw(st.binary(max_size=5)) + content[at + data.draw(st.integers(0, 5)) :]
    content = content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        reading, told = Reading(), ""
        try:
            list(records_of(CorpusConfig(path=str(path), max_bad_share=1.0), reading))
        except ProxykdError as error:
            told = str(error)
        assert name in told or reading.rows == reading.kept + reading.dropped.total()
        with contextlib.suppress(ProxykdError):
            question_file(path)


@FUZZED
@given(mutated([QUESTION, QUESTION | {"choices": None}]))
def test_whatever_a_question_is_it_is_one_or_named(row):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "q.jsonl"
        path.write_bytes(line_of(row))
        found, told = [], ""
        try:
            found = question_file(path)
        except ProxykdError as error:
            told = str(error)
        assert found or "q.jsonl" in told
        for question in found:
            assert question.prompt
            assert question.right(question.extract(question.answer)) in (True, False)


@settings(FUZZED, max_examples=EXAMPLES * 3)
@given(st.data())
def test_whatever_is_written_some_answer_is_read_or_none(data):
    judged, other = data.draw(st.sampled_from(GENERATIONS)), data.draw(st.sampled_from(GENERATIONS))
    text = judged.generation + data.draw(st.sampled_from(["", "\n", " "])) + other.generation
    at = data.draw(st.integers(0, len(text)))
    text = text[:at] + data.draw(st.text(st.characters(exclude_categories=()), max_size=6)) + text[at:]
    found = judged.question.extract(text)
    assert found is None or found.strip()
    assert judged.question.right(found) in (True, False)


@FUZZED
@given(st.text(st.characters(exclude_categories=()), max_size=30) | st.binary(max_size=30))
def test_what_json_holds_can_be_written_again(raw):
    with contextlib.suppress(ValueError):  # a BadRow
        assert json.dumps(parsed(raw), ensure_ascii=False).encode() is not None
