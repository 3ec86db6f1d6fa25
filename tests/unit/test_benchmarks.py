"""Benchmark records from files and from the hub's data sets, subsets, scores with their standard errors."""

from __future__ import annotations

import gzip
import json
import math
import re

import pytest

from proxykd.errors import BenchmarkError
from proxykd.evaluation.answers import Question
from proxykd.evaluation.benchmarks import Grade, parse_tasks, read_questions, subset, summarise, tasks_in
from proxykd.evaluation.harness import _from_row, hub_questions

ROW = {"id": "mmlu/test/anatomy/0", "question": "Which?", "choices": ["a", "b"], "answer": "B"}


def grades(*right, subtask="", read=True):
    return [
        Grade(str(i), subtask, f"{subtask} {i}, {read}?", "g", "A", "A" if read else None, bool(r))
        for i, r in enumerate(right)
    ]


def test_records_are_read_plain_or_gzipped_whole_or_sampled(tmp_path):
    (tmp_path / "mmlu.jsonl").write_text(json.dumps(ROW) + "\n")
    with gzip.open(tmp_path / "agieval_sample.jsonl.gz", "wt") as file:
        file.write(json.dumps(ROW | {"choices": None, "answer": 7}) + "\n\n")
    assert read_questions("mmlu", tmp_path) == [Question(ROW["id"], "Which?", ("a", "b"), "B")]
    assert read_questions("agieval", tmp_path)[0].answer == "7"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "mmlu.jsonl line 2 is no benchmark record (not JSON"),
        ("[]", "mmlu.jsonl line 2 is no benchmark record"),
        (json.dumps(ROW | {"choices": "ab"}), "choices ab is no list"),
        (json.dumps(ROW | {"answer": ""}), "answer '' is no letter of its 2 choices"),
        (json.dumps(ROW | {"answer": "AB"}), "answer 'AB' is no letter of its 2 choices"),
        (json.dumps(ROW | {"choices": [], "answer": ""}), "answer '' is no letter of its 0 choices"),
        (json.dumps(ROW | {"choices": None, "answer": " "}), "answer ' ' is none"),
        (json.dumps(ROW | {"choices": None, "answer": None}), "answer None is none"),
        (json.dumps({"id": 1}), "KeyError: 'choices'"),
        (json.dumps(ROW | {"answer": "C"}), "answer 'C' is no letter of its 2 choices"),
    ],
)
def test_a_line_that_is_no_record_is_named(tmp_path, line, message):
    (tmp_path / "mmlu.jsonl").write_text("\n".join([json.dumps(ROW), line, json.dumps(ROW), ""]))
    with pytest.raises(BenchmarkError) as told:
        read_questions("mmlu", tmp_path)
    assert message in str(told.value)


def test_the_hubs_tasks_are_parsed_in_order_and_unknown_ones_refused():
    assert parse_tasks("mmlu, bbh,mmlu", None) == ["mmlu", "bbh"]
    for names in ("mmlu,hellaswag", "", ","):
        with pytest.raises(BenchmarkError, match=r"known: bbh,agieval.*NAME.jsonl in a folder, --data-dir FOLDER"):
            parse_tasks(names, None)


def test_every_file_of_a_folder_is_a_task_by_its_name(tmp_path):
    row = json.dumps({"id": "sums/plus/0", "question": "what is 2 plus 2 ?", "choices": None, "answer": "4"})
    (tmp_path / "sums.jsonl").write_text(row + "\n")
    for name in ("mmlu_sample.jsonl", "taxes.jsonl.gz", "notes.txt", "sums.jsonl.bak"):
        (tmp_path / name).write_text("")
    assert tasks_in(tmp_path) == ["mmlu", "sums", "taxes"]
    assert parse_tasks("sums,mmlu", tmp_path) == ["sums", "mmlu"]
    assert read_questions("sums", tmp_path) == [Question("sums/plus/0", "what is 2 plus 2 ?", None, "4")]


@pytest.mark.parametrize("names", ["csqa", "sums,csqa", "../sums", "", "sums.jsonl"])
def test_a_task_that_a_folder_has_not_is_refused_with_what_it_has(tmp_path, names):
    for name in ("sums.jsonl", "taxes.jsonl"):
        (tmp_path / name).write_text(json.dumps(ROW) + "\n")
    with pytest.raises(BenchmarkError, match=re.escape(f"is no benchmark in {tmp_path}; there: sums,taxes; a line is")):
        parse_tasks(names, tmp_path)
    with pytest.raises(BenchmarkError, match=r"absent; there: no .jsonl or .jsonl.gz"):
        parse_tasks("sums", tmp_path / "absent")


def test_a_file_by_the_reports_own_name_or_without_questions_is_refused(tmp_path):
    for name in ("average.jsonl", "sums.jsonl"):
        (tmp_path / name).write_text("\n")
    with pytest.raises(BenchmarkError, match="call the mean of all tasks 'average'; rename the file"):
        parse_tasks("sums,average", tmp_path)
    with pytest.raises(BenchmarkError, match=r"sums.jsonl has no questions"):
        read_questions("sums", tmp_path)


def test_a_subset_is_random_the_same_for_a_seed_and_in_order():
    questions = [Question(str(i), "", None, "1") for i in range(100)]
    drawn = subset(questions, 10, seed=3)
    assert drawn == subset(questions, 10, seed=3) != subset(questions, 10, seed=4)
    assert [int(q.id) for q in drawn] == sorted({int(q.id) for q in drawn})
    assert subset(questions, None, 0) == subset(questions, 100, 0) == questions


def test_scores_are_shares_with_the_standard_error_of_a_mean():
    score = summarise(grades(1, 1, 0, 0, 0) + grades(0, read=False))
    values = [1, 1, 0, 0, 0, 0]
    mean = sum(values) / 6
    spread = sum((v - mean) ** 2 for v in values) / 5
    assert score.score == pytest.approx(mean)
    assert score.stderr == pytest.approx(math.sqrt(spread / 6))
    assert score.n == 6
    assert score.unanswered == pytest.approx(1 / 6)
    assert "subtasks" not in score.model_dump()


def test_a_question_that_stands_twice_is_one_piece_of_evidence():
    once, twice = grades(1, 0, 0, 1, 1), [*grades(1, 0, 0, 1, 1), *grades(1, 0, 0, 1, 1)]
    assert summarise(twice).n == 10
    assert summarise(twice).stderr == pytest.approx(summarise(once).stderr)
    assert summarise(grades(1)).stderr is None


def test_subtasks_have_scores_of_their_own_and_weigh_by_size():
    score = summarise(grades(1, 1, 1, subtask="anatomy") + grades(0, subtask="virology"))
    assert score.score == 0.75
    assert {name: s.score for name, s in score.subtasks.items()} == {"anatomy": 1.0, "virology": 0.0}


@pytest.mark.parametrize(
    ("task", "name", "row", "expected"),
    [
        ("bbh", "bbh_zeroshot_navigate", {"input": "Q", "target": "No"}, Question("bbh/navigate/4", "Q", None, "No")),
        (
            "mmlu",
            "mmlu_anatomy_generative",
            {"question": "Q", "choices": ["a", "b", "c", "d"], "answer": 2},
            Question("mmlu/anatomy/4", "Q", ("a", "b", "c", "d"), "C"),
        ),
        (
            "agieval",
            "agieval_sat_en",
            {"query": "Q", "choices": ["(A)x", "(B)y"], "gold": [1]},
            Question("agieval/sat_en/4", "Q", ("x", "y"), "B"),
        ),
        ("agieval", "agieval_math", {"query": "Q", "answer": "7"}, Question("agieval/math/4", "Q", None, "7")),
    ],
)
def test_rows_of_the_hub_become_the_same_records(task, name, row, expected):
    assert _from_row(task, name, 4, row) == expected


HUB = {
    "gsm8k": (
        ("openai/gsm8k", "main", "test"),
        {"question": "How many?", "answer": "2 + 2 = <<2+2=4>>4\n#### 1,004"},
        Question("gsm8k/0", "How many?", None, "1004"),
    ),
    "arc_challenge": (
        ("allenai/ai2_arc", "ARC-Challenge", "test"),
        {"id": "x", "question": "Which?", "choices": {"text": ["a", "b", "c"], "label": ["1", "2", "3"]}, "answerKey": "3"},
        Question("arc_challenge/0", "Which?", ("a", "b", "c"), "C"),
    ),
    "csqa": (
        ("tau/commonsense_qa", "default", "validation"),
        {"id": "x", "question": "Where?", "choices": {"label": list("ABCDE"), "text": list("vwxyz")}, "answerKey": "E"},
        Question("csqa/0", "Where?", tuple("vwxyz"), "E"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("task", HUB)
def test_the_harness_gives_a_benchmarks_split(task, tmp_path, monkeypatch):
    """Its own task definition loads the data set; here from a folder of that name, as the hub lays it out."""
    (source, config, split), row, expected = HUB[task]
    folder = tmp_path / source
    folder.mkdir(parents=True)
    files = []
    for name in dict.fromkeys((split, "train", "validation")):
        (folder / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
        files.append(f"  - split: {name}\n    path: {name}.jsonl\n")
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: {config}\n  data_files:\n{''.join(files)}---\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    assert hub_questions(task) == [expected]


def test_a_hub_that_does_not_answer_is_said_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BenchmarkError, match=r"task bbh cannot be had from the hub .*--data-dir"):
        hub_questions("bbh")
