"""Prompts without answers: the aligned proxy's own, learned by the KL alone; held-out ones are refused."""

from __future__ import annotations

import json

import pytest

from actors.run.pipeline import Pipeline
from proxykd.config import DistillationConfig, ModelConfig
from proxykd.costs.devices import GPUS
from proxykd.costs.estimator import Estimator, Text
from proxykd.data import label_shards
from proxykd.data.corpus_store import answer_shards, read_slice
from proxykd.data.label_shards import LabelledShard, grouped, labelled_rows
from proxykd.data.row_ranges import read_shard_rows
from proxykd.data.unlabelled import read_unlabelled
from proxykd.errors import CorpusError
from proxykd.models.loading import load_scorer
from proxykd.planning.text_checks import require_text
from proxykd.report.run_report import build_report
from proxykd.stages.answer import ANSWER
from proxykd.stages.distil import DISTIL
from proxykd.stages.score import SCORE
from proxykd.stages.table import stage_keys
from proxykd.training.stage_losses import DistillationLoss
from tests.inline_run import Trainers, answer_here, context_of, make_run, stream_rows
from tests.small_run import run_config
from tests.unit.test_training import rows as rows_of_training

SHORT = {"rounds": 1, "preference": False, "global_batch": 8, "max_new_tokens": 12}


@pytest.fixture(scope="module")
def here():
    with pytest.MonkeyPatch.context() as patch:
        stream_rows(patch)
        answer_here(patch)
        yield


def with_prompts(tiny, folder, prompts, **sections):
    """A run that has these prompts beside its corpus."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "more.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in prompts))
    corpus = {"path": str(folder / "c.jsonl"), "max_length": 96, "shard_records": 8, "unlabelled": str(path)}
    return make_run(tiny, folder, corpus=corpus, alignment=SHORT, **sections)


@pytest.fixture(scope="module")
def finished(here, tiny, tmp_path_factory):
    """A run whose machine died as its answers were to be labelled; its trainers before and after."""
    prompts = [{"id": f"more-{i}", "prompt": f"something else to say, number {i}"} for i in range(11)]
    prompts.append({"id": "long", "prompt": "word " * 200})
    run = with_prompts(tiny, tmp_path_factory.mktemp("unlabelled"), prompts)
    before, after = Trainers(fail_at="answer"), Trainers()
    with pytest.raises(OSError, match="dies in answer"):
        Pipeline(context_of(run, before)).execute()
    drawn = [row["completion_ids"] for path in answers(run) for row in read_shard_rows(path)]
    Pipeline(context_of(run, after)).execute()
    return run, drawn, after


def answers(run):
    return answer_shards(run, SCORE.finished(run).result.adapter)


def test_the_proxys_answers_are_drawn_once_and_labelled(finished):
    run, drawn, after = finished
    assert after.asked == ["answer", "distil", "evaluate"]
    rows = [row for path in answers(run) for row in read_shard_rows(path)]
    assert [row["completion_ids"] for row in rows] == drawn
    assert sorted(row["id"] for row in rows) == sorted(f"more-{i}" for i in range(11))
    assert all(1 <= len(ids) <= 12 for ids in drawn)
    found = ANSWER.finished(run).result
    assert (found.records, found.tokens, found.dropped) == (11, sum(map(len, drawn)), {"prompt_too_long": 1})


def test_the_student_streams_them_among_the_teachers_text_with_a_weight_of_one(finished):
    run, _, after = finished
    taught, own = ([row for row in after.streamed["distil"] if row["answer"] is answer] for answer in (False, True))
    assert [row["id"] for row in taught] == [row["id"] for row in read_slice(run, "distillation")]
    assert len(own) == 11
    assert {row["trust"] for row in own} == {1.0}
    assert all(0 < row["trust"] < 1 for row in taught)
    assert all(row["record_id"] == row["id"] for row in after.streamed["distil"])
    assert DISTIL.finished(run).result.records == len(after.streamed["distil"])


def test_trust_is_of_the_teachers_text_and_the_report_tells_what_came_beside_it(finished, here, tiny, tmp_path):
    run, drawn, _ = finished
    report = build_report(run, "told")
    assert report.soft_labels.answers.tokens == sum(map(len, drawn))
    assert report.soft_labels.tokens == sum(len(row["completion_ids"]) for row in read_slice(run, "distillation"))
    plain = make_run(tiny, tmp_path, alignment=SHORT)
    Pipeline(context_of(plain, Trainers())).execute()
    other = build_report(plain, "told")
    assert other.soft_labels.answers is None
    assert (other.trust.mu, other.trust.gamma) == (report.trust.mu, report.trust.gamma)
    assert other.student.after != report.student.after


def test_answers_are_dealt_out_to_the_shards_and_spread_among_their_records(monkeypatch):
    def shards(kind, count):
        return [LabelledShard(f"{kind}{i}", "", answers=kind == "a") for i in range(count)]

    groups = grouped(shards("d", 3), shards("a", 6))
    assert [[one.completions for one in group] for group in groups] == [
        ["d0", "a0", "a1"], ["d1", "a2", "a3"], ["d2", "a4", "a5"],
    ]  # fmt: skip
    assert [len(group) for group in grouped(shards("d", 4), shards("a", 2))] == [2, 1, 2, 1]
    rows = {"d0": 6, "a0": 2}
    monkeypatch.setattr(label_shards, "_labelled", lambda shard, *_: [shard.completions] * rows[shard.completions])
    assert labelled_rows((*shards("d", 1), *shards("a", 1)), None, None) == ["d0", "d0", "a0", *["d0"] * 3, "a0", "d0"]


@pytest.mark.parametrize("reduction", ["sequence_mean", "token_sum"])
def test_an_answer_has_the_kl_alone(tiny, reduction):
    """Against each row by itself: what the answers add to the NLL is nothing, whatever they count in its unit."""
    scorer = load_scorer(tiny, ModelConfig(source=str(tiny), dtype="float32", method="full"))
    config = DistillationConfig(alpha=3.0, kl_reduction=reduction)
    batch = [{**row, "answer": i % 3 == 0} for i, row in enumerate(rows_of_training())]
    terms, _ = DistillationLoss(batch, config)(scorer, batch)
    units = {"sequence_mean": len(batch), "token_sum": sum(len(row["completion_ids"]) for row in batch)}
    nll = kl = 0.0
    for row in batch:
        alone = [{**row, "answer": False}]
        own = 1 if reduction == "sequence_mean" else len(row["completion_ids"])
        found, _ = DistillationLoss(alone, config)(scorer, alone)
        nll += 0.0 if row["answer"] else own * found["nll"].item()
        kl += own * found["kl"].item()
    assert terms["nll"].item() == pytest.approx(nll / units[reduction], rel=1e-5)
    assert terms["kl"].item() == pytest.approx(kl / units[reduction], rel=1e-5)


def test_a_held_out_prompt_among_them_is_refused_before_anything_starts(finished, tiny, tmp_path):
    """By its normalised text: another case, other spaces, a system message of its own."""
    held_out = read_slice(finished[0], "test")[0]["prompt"]
    again = {"id": "again", "system": "Be brief.", "prompt": f"  {held_out.upper()} "}
    run, trainers = with_prompts(tiny, tmp_path, [{"prompt": "new"}, again]), Trainers()
    refusal = r"1 of its prompts are held out, .* again .* in the slice test; remove them from corpus\.unlabelled"
    with pytest.raises(CorpusError, match=refusal):
        require_text([run.config()])
    with pytest.raises(CorpusError, match=refusal):
        Pipeline(context_of(run, trainers)).execute()
    assert trainers.asked == []


def test_where_the_run_asks_the_teacher_they_have_its_system_message(tiny, tmp_path):
    (tmp_path / "more.jsonl").write_text('{"prompt": "new"}\n{"prompt": "own", "system": "Mine."}\n')
    corpus = {"path": None, "prompts": "p", "unlabelled": str(tmp_path / "more.jsonl")}
    teacher = {"model": "m", "system": "Be brief.", "base_url": "http://127.0.0.1:1/v1"}
    asked = run_config(str(tiny), str(tmp_path), corpus=corpus, teacher=teacher)
    first, second = (prompt.messages[0] for prompt in read_unlabelled(asked))
    assert first == {"role": "system", "content": "Be brief."}
    assert second == {"role": "system", "content": "Mine."}
    given = run_config(str(tiny), str(tmp_path), corpus=corpus | {"path": "c", "prompts": None}, teacher=teacher)
    assert [prompt.messages[0]["role"] for prompt in read_unlabelled(given)] == ["user", "system"]


def test_a_file_that_is_not_there_and_prompts_that_leave_no_room_are_refused(here, tiny, tmp_path):
    run = with_prompts(tiny, tmp_path / "gone", [{"prompt": "new"}])
    (tmp_path / "gone" / "more.jsonl").unlink()
    with pytest.raises(CorpusError, match=r"corpus\.unlabelled .* does not exist"):
        Pipeline(context_of(run, Trainers())).execute()
    run = with_prompts(tiny, tmp_path / "long", [{"prompt": "word " * 200}])
    with pytest.raises(CorpusError, match=r"no prompt that can be answered \(dropped: \{'prompt_too_long': 1\}\)"):
        Pipeline(context_of(run, Trainers())).execute()


def test_runs_with_and_without_share_all_but_the_student(tiny, tmp_path):
    plain, more = (
        stage_keys(run_config(str(tiny), str(tmp_path), corpus={"path": "c", **extra}))
        for extra in ({}, {"unlabelled": "p"})
    )
    assert [name for name in plain if plain[name] != more[name]] == ["distil", "evaluate"]
    assert "answer" in more


def test_the_plan_counts_them(tiny):
    config = run_config(str(tiny), "runs", corpus={"path": "c", "unlabelled": "p"}, score={"source": "trainer"})
    some, more = (Estimator(config, Text(100, 10.0, 10.0, count), GPUS["a100-80g"]) for count in (20, 40))
    assert [stage.records for stage in ANSWER.cost(some)] == [20, 20]
    assert DISTIL.cost(more)[0].records - DISTIL.cost(some)[0].records == 20
