"""A finished run's students say what they are: the card by the hub's own reader, hashes by hand."""

from __future__ import annotations

import hashlib
import json
import re

import pytest
from huggingface_hub import ModelCard

from actors.run.pipeline import Pipeline
from proxykd.config import validate_config
from proxykd.evaluation.benchmarks import TaskScore
from proxykd.report.model_card import write_cards
from proxykd.report.report_model import read_report
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import read_json, verify_directory
from tests.inline_run import Trainers, context_of, make_run, stream_rows

SFT = {"learning_rate": 1e-3, "global_batch": 8, "epochs": 1}
TERMS = "permit training, checked on 2026-11-26"


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        stream_rows(patch)
        card = {"licence": "apache-2.0", "language": ["en", "de"], "dataset": "us/answers"}
        teacher = {"model": "gpt-4", "terms": TERMS}
        run = make_run(tiny, tmp_path_factory.mktemp("card"), sft=SFT, card=card, teacher=teacher)
        Pipeline(context_of(run, Trainers())).execute()
        yield run


def test_the_hubs_own_reader_finds_what_the_run_found(run):
    report = read_report(run)
    card = ModelCard.load(run.student / "README.md")
    data = card.data
    assert (data.license, data.language, data.datasets) == ("apache-2.0", ["en", "de"], ["us/answers"])
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-generation")
    found = {result.metric_type: result.metric_value for result in data.eval_results}
    assert found == {
        "nll": round(report.student.after.held_out_nll, 4),
        "top1": round(report.student.after.top1_agreement, 4),
    }
    after = report.student.after
    assert f"| this student | {after.held_out_nll:.4f} ± {after.stderr:.4f} |" in card.text
    assert f"| SFT alone | {report.sft.after.held_out_nll:.4f}" in card.text
    assert f"| its proxy | {report.proxy.aligned.held_out_nll:.4f}" in card.text
    assert f"gpt-4: {TERMS}." in card.text
    assert "No benchmark was run" in card.text


def test_the_one_by_sft_says_so(run):
    report = read_report(run)
    card = ModelCard.load(run.sft_student / "README.md")
    assert "sft" in card.data.tags
    assert "text alone (SFT)" in card.text
    assert card.data.eval_results[0].metric_value == round(report.sft.after.held_out_nll, 4)
    assert f"| the distilled one | {report.student.after.held_out_nll:.4f}" in card.text


def test_no_path_stands_in_either(run):
    for student in (run.student, run.sft_student):
        for name in ("README.md", "provenance.json"):
            text = (student / name).read_text()
            assert str(run.root.parent) not in text
            assert not re.search(r"/(tmp|home|root|work)/", text)


def test_every_hash_is_that_of_what_lies_there(run):
    told = read_json(run.student / "provenance.json")
    assert told["teacher"] == {"model": "gpt-4", "terms": TERMS}
    assert told["config_sha256"] == run.config().sha256
    for name, files in told["models"].items():
        for file, sha256 in files.items():
            assert hashlib.sha256((run.models / name / file).read_bytes()).hexdigest() == sha256
    weights = hashlib.sha256((run.student / "model.safetensors").read_bytes()).hexdigest()
    assert told["student"]["model.safetensors"] == weights
    assert told["adapters"][0]["name"].startswith("warmup-")
    for adapter in told["adapters"]:
        path = run.adapters / adapter["name"] / "adapter_model.safetensors"
        assert hashlib.sha256(path.read_bytes()).hexdigest() == adapter["sha256"]
    assert "torch" in told["code"]["packages"]
    assert told["code"]["locks"].keys() >= {"cpu.lock"}
    lines = []
    for shard in sorted(run.corpus.glob("*/*.parquet")):
        sha256 = hashlib.sha256(shard.read_bytes()).hexdigest()
        lines.append(f"{shard.parent.name}/{shard.stem}.ok {sha256}\n")
    assert told["corpus"]["sha256"] == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_it_is_written_anew_to_the_byte_and_the_student_is_as_its_manifest_says(run):
    before = (run.student / "README.md").read_bytes(), (run.student / "provenance.json").read_bytes()
    write_cards(run, read_report(run))
    assert before == ((run.student / "README.md").read_bytes(), (run.student / "provenance.json").read_bytes())
    verify_directory(run.student)


def test_scores_of_benchmarks_join_it(run):
    report = read_report(run)
    scored = {"student": {"gsm8k": TaskScore(score=0.25, stderr=0.03, n=200, unanswered=0.0)}}
    write_cards(run, report.model_copy(update={"benchmarks": scored}))
    assert "| gsm8k | 0.2500 ± 0.0300 | 200 |" in (run.student / "README.md").read_text()
    write_cards(run, report)


def test_without_terms_the_card_says_so(run, tmp_path, tiny):
    from proxykd.report.model_card import model_card

    config = run.config()
    plain = config.model_copy(update={"teacher": config.teacher.model_copy(update={"terms": None})})
    assert "gpt-4: terms not stated. Many providers restrict" in model_card(plain, read_report(run))


def test_terms_and_card_change_no_result_and_a_config_of_before_is_read(run):
    raw = json.loads((run.root / "config.json").read_text())
    other = raw | {"card": {}, "teacher": raw["teacher"] | {"terms": None}}
    assert validate_config(other, "c").sha256 == run.config().sha256
    del other["teacher"]["terms"]
    of_before = other | {"collection": raw["collection"] | {"terms": "as checked"}}
    assert validate_config(of_before, "c").teacher.terms == "as checked"
    assert RunDirectory.open(run.root).config().teacher.terms == TERMS
