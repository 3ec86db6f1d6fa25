"""A study by the command line: the arms that Ray and the engine tell apart, two families' models, a death of everything,
and its resume."""

from __future__ import annotations

import csv
import json

import pytest
import yaml

from proxykd.data.corpus_store import read_slice, slice_shards
from proxykd.data.row_ranges import read_shard_rows
from proxykd.runs.storage import read_json, verify_directory
from proxykd.stages.distil import DISTIL
from proxykd.study.studies import StudyDirectory
from proxykd.text.tokenizer import load_tokenizer
from tests import families, tiny_model
from tests.chaos.victims import kill, nothing_left
from tests.object_store import free_port
from tests.other_tokenizer import other_model
from tests.real.test_run import proxykd, wait_for
from tests.small_run import run_config

pytestmark = [pytest.mark.alone, pytest.mark.timeout(3600)]
"""The fixture is eight runs, killed on their way."""
ARMS = ("proxy_kd", "reverse_kl_on_policy", "takd")
WHOLE = ("sft_on_all", "soda")
"""Those that learn from all of the text; the first also from half of it."""
FAMILY, OTHER = "gemma2", "phi3"
"""Of all arms, and of one of its own: soft caps, fused layers and two stop tokens. test_cluster has a third."""
ACROSS = "other_tokenizer"
"""Whose student keeps its own."""
SLICES = ("validation", "test", "warmup", "alignment", "distillation")
SEEDS = (1,)
"""One: what several give is arithmetic, of tests/unit."""
SIZE = 28
SHARED = {"adapter_model.safetensors", "shard-00000.parquet"}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    source = str(families.make(FAMILY, folder / FAMILY, layers=4))
    (folder / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tiny_model.corpus_rows(80)))
    run = run_config(
        source,
        str(folder / "studies"),
        corpus=run_config("any", "any").corpus.model_dump() | {"path": str(folder / "c.jsonl"), "shard_records": 16},
        alignment={"rounds": 1, "learning_rate": 3e-3, "global_batch": 8, "max_new_tokens": 12, "parity_records": 2},
        score={"source": "trainer"},
        white_box={
            "teacher": {"source": source, "dtype": "float32"},
            "max_new_tokens": 8,
            "assistant": {"learning_rate": 3e-3, "global_batch": 8},
        },
        resources={"engine_max_seqs": 16, "micro_batch_tokens": 512, "checkpoint_seconds": 0.0},
    ).model_dump(mode="json", exclude_defaults=True)
    del run["name"], run["seed"]
    raw = {"name": "tiny-study", "seeds": list(SEEDS), "arms": [*ARMS, *WHOLE, OTHER, ACROSS], "run": run}
    raw["sizes"] = {"records": [SIZE], "arms": ["sft_on_all"]}
    own = {"student.source": str(other_model(folder / ACROSS)), "student.tokenizer": "own", "student.drop_layers": [2]}
    raw["own_arms"] = {ACROSS: {"title": "another tokenizer", "set": own}}
    other = str(families.make(OTHER, folder / OTHER, layers=4))
    raw["own_arms"][OTHER] = {"title": OTHER, "set": {"proxy.source": other, "student.source": other}}
    (folder / "s.yaml").write_text(yaml.safe_dump(raw))
    command = ("study", str(folder / "s.yaml"), "--http-port", str(free_port()))
    with nothing_left(folder / "studies"):
        started = proxykd(*command, "--detach")
        assert started.returncode == 0, started.stderr
        [root] = (folder / "studies").iterdir()
        study = StudyDirectory(root)
        wait_for(lambda: any((run.stages / "align-01.json").exists() for run in study.runs()), 1500)
        running = json.loads(proxykd("status", str(root), "--json").stdout)
        assert kill("machine", root) > 5
        killed = json.loads(proxykd("status", str(root), "--json").stdout)
        before = {path: path.read_bytes() for run in study.runs() for path in run.stages.glob("*.json")}
        again = proxykd(*command, timeout=2000)
        yield {
            "study": study,
            "again": again,
            "running": running,
            "killed": killed,
            "before": before,
            "config": folder / "s.yaml",
        }


@pytest.fixture(scope="module")
def by_arm(done):
    assert done["again"].returncode == 0, done["again"].stderr
    study = done["study"]
    return {(arm.name, arm.seed): study.run(arm) for arm in study.arms() if arm.size is None}


def test_a_death_of_everything_costs_no_finished_stage(done, by_arm):
    assert done["running"]["state"] == "running"
    assert (done["killed"]["state"], done["killed"]["alive"]) == ("stopped", False)
    assert len(done["running"]["runs"]) == (len(ARMS) + len(WHOLE) + 3) * len(SEEDS)
    for path, content in done["before"].items():
        assert path.read_bytes() == content
    report = read_json(done["study"].report)
    assert {(arm["name"], arm["seed"]) for arm in report["arms"] if arm["size"] is None} == set(by_arm)


def test_what_arms_share_is_made_once(by_arm):
    made = {}
    for run in (by_arm[name, seed] for name in (*ARMS, ACROSS) for seed in SEEDS):
        for path in run.stages.glob("*.json"):
            marker = read_json(path)
            made.setdefault(path.stem, []).append(marker.get("adopted_from") is None)
    seeds = len(SEEDS)
    assert sum(made["corpus"]) == seeds
    assert sum(made["warmup"]) == sum(made["align-01"]) == sum(made["score"]) == seeds
    assert sum(made["complete"]) == sum(made["assist"]) == seeds
    assert sum(made["distil"]) == (len(ARMS) + 1) * seeds
    one, other = by_arm["proxy_kd", 1], by_arm[ACROSS, 1]
    files = [path for path in one.adapters.rglob("*") if path.name in SHARED]
    assert files
    for path in files:
        assert path.stat().st_ino == (other.root / path.relative_to(one.root)).stat().st_ino


def test_all_arms_of_a_seed_start_from_one_student_and_see_as_many_batches(by_arm):
    for seed in SEEDS:
        runs = [by_arm[name, seed] for name in ARMS]
        assert len({json.dumps(read_json(run.report)["student"]["before"]) for run in runs}) == 1
        steps = {len(DISTIL.finished(run).result.steps) for run in runs}
        assert len(steps) == 1


def test_an_open_teacher_completes_the_same_prompts_and_teaches_an_assistant(by_arm):
    run = by_arm["takd", 1]
    for name in ("warmup", "alignment", "distillation"):
        theirs = [row for path in slice_shards(run, name) for row in read_shard_rows(run.completed(name) / path.name)]
        ours = read_slice(run, name)
        assert [(row["id"], row["prompt_ids"]) for row in theirs] == [(row["id"], row["prompt_ids"]) for row in ours]
        assert all(1 <= len(row["completion_ids"]) <= 9 for row in theirs)
        assert [row["completion_ids"] for row in theirs] != [row["completion_ids"] for row in ours]
    report = read_json(run.report)
    assert verify_directory(run.adapters / report["white_box"]["assistant"]["adapter"])["round"] is None
    assert report["proxy"] is report["soft_labels"] is report["trust"] is None
    assert report["student"]["loss_share"] == {"divergence": 1.0}


def test_a_student_of_the_text_alone(by_arm):
    text = read_json(by_arm["sft_on_all", 1].report)
    assert text["rounds"] == []
    assert text["soft_labels"] is None
    assert text["student"]["loss_share"] == {"nll": 1.0}
    assert text["student"]["after"]["held_out_nll"] < text["student"]["before"]["held_out_nll"]


def test_arms_of_all_the_text_share_its_student_and_are_told_by_size(done, by_arm):
    """SODA goes on from SFT's own student, and half of the answers is half of the same ones."""
    for seed in SEEDS:
        sft, soda = by_arm["sft_on_all", seed], by_arm["soda", seed]
        training = {row["id"] for row in read_slice(sft, "training")}
        held_out = {row["id"] for name in ("validation", "test") for row in read_slice(sft, name)}
        assert training | held_out == {
            row["id"] for name in SLICES for row in read_slice(by_arm["proxy_kd", seed], name)
        }
        markers = [read_json(run.stages / "distil.json") for run in (sft, soda)]
        assert sorted(marker.get("adopted_from") is None for marker in markers) == [False, True]
        told = read_json(soda.report)["student"]
        assert told["offline"] == read_json(sft.report)["student"]["after"]
        assert told["on_policy"]["records"] == len(training)
    [row] = [row for row in read_json(done["study"].report)["sizes"] if row["records"] == SIZE]
    assert row["arm"] == "sft_on_all"
    assert "SODA (SFT, then preference)" in done["again"].stdout


@pytest.mark.parametrize("arm", ["proxy_kd", OTHER])
def test_the_whole_pipeline_runs_for_models_of_other_families(by_arm, arm):
    families.check_run(by_arm[arm, 1])


def test_a_student_of_another_tokenizer_learns_the_labels_of_the_same_proxy(by_arm):
    for seed in SEEDS:
        run, proxy_kd = by_arm[ACROSS, seed], by_arm["proxy_kd", seed]
        for stage in ("corpus", "warmup", "align-01", "score"):
            assert read_json(run.stages / f"{stage}.json")["adopted_from"] or (
                read_json(proxy_kd.stages / f"{stage}.json")["adopted_from"] == run.id
            )
        report = read_json(run.report)
        assert 0 < report["retokenised"]["one_to_one"] < 1
        before, after = report["student"]["before"], report["student"]["after"]
        assert after["nll_a_byte"] < before["nll_a_byte"]
        assert load_tokenizer(run.student).get_vocab() != load_tokenizer(run.models / "proxy").get_vocab()


def test_the_table_says_who_is_how_far_from_the_reference(done, by_arm):
    report = read_json(done["study"].report)
    rows = {row["arm"]: row for row in report["table"]}
    mine = [read_json(by_arm["takd", seed].report)["student"]["after"]["held_out_nll"] for seed in SEEDS]
    full = [read_json(by_arm["proxy_kd", seed].report)["student"]["after"]["held_out_nll"] for seed in SEEDS]
    assert rows["takd"]["held_out_nll"] == pytest.approx(sum(mine) / len(SEEDS))
    assert rows["takd"]["held_out_nll_difference"] == pytest.approx((sum(mine) - sum(full)) / len(SEEDS))
    for name, source in (("takd", "assistant"), ("reverse_kl_on_policy", "teacher")):
        theirs = [read_json(by_arm[name, seed].report)["white_box"][source]["held_out_nll"] for seed in SEEDS]
        assert rows[name]["source_nll"] == pytest.approx(sum(theirs) / len(SEEDS))
    assert rows["sft_on_all"]["source_nll"] is None
    with (done["study"].report.parent / "arms.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(by_arm) + len(SEEDS)  # and the smaller ones
    assert "another tokenizer" in done["again"].stdout
    told = proxykd("report", str(done["study"].root)).stdout
    assert "TAKD (white-box)" in told
    assert f"{rows['takd']['source_nll']:.4f}" in told
    assert "…" not in told
    assert "is done" in proxykd("study", str(done["config"])).stdout
