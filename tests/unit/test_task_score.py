"""Rounds that are judged by a task's score: what the proxy answers against greedy decoding of our own, and what that
decides; a task that cannot be asked is refused before anything starts."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache

import pytest
import torch

from actors.run.pipeline import Pipeline
from actors.run.preparation import task_as_asked
from proxykd.costs.devices import GPUS
from proxykd.costs.estimator import Estimator, Text
from proxykd.costs.memory_plan import GIB, footprints, kv_bytes
from proxykd.data.corpus_store import read_slice
from proxykd.errors import BenchmarkError, ConfigError, RunError
from proxykd.evaluation.answers import Question
from proxykd.evaluation.task import score_change
from proxykd.models.architecture import require_architecture
from proxykd.models.loading import load_scorer
from proxykd.planning.text_checks import require_text
from proxykd.report.run_report import round_report
from proxykd.runs.journal import replay
from proxykd.runs.storage import read_table
from proxykd.stages.align import ALIGN
from proxykd.stages.table import stage_keys
from proxykd.stages.warmup import WARMUP
from proxykd.text.chat import ChatFormat
from proxykd.text.tokenizer import load_tokenizer
from tests.inline_run import Lender, Trainers, context_of, make_run
from tests.small_run import run_config

ROUNDS = {"rounds": 2, "preference": False, "global_batch": 8, "learning_rate": 3e-2}
ASKED = [f"What is said of number {i}?" for i in range(6)]


def with_task(tiny, folder, questions, **alignment):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "task.jsonl"
    lines = [{"id": q.id, "question": q.question, "choices": q.choices, "answer": q.answer} for q in questions]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    corpus = {"path": str(folder / "c.jsonl"), "max_length": 192, "shard_records": 8}
    return make_run(tiny, folder, corpus=corpus, alignment={**ROUNDS, "task": str(path), **alignment})


@cache
def our_answer(run, adapter, question):
    """What the adapter says to a question, greedily, a whole forward pass a token."""
    tokenizer = load_tokenizer(run.models / "proxy")
    scorer = load_scorer(run.models / "proxy", run.config().proxy, adapter=run.adapters / adapter, trainable=False)
    scorer.eval()
    ids = ChatFormat(tokenizer).prompt_ids([{"role": "user", "content": question.prompt}])
    start = len(ids)
    with torch.no_grad():
        while len(ids) - start < 96 and (len(ids) == start or ids[-1] not in (0, 2)):
            ids.append(int(scorer.model(input_ids=torch.tensor([ids])).logits[0, -1, : len(tokenizer)].argmax()))
    return tokenizer.decode(ids[start:], skip_special_tokens=True)


@pytest.fixture(scope="module")
def finished(streams, tiny, tmp_path_factory):
    """A run whose questions have for their answers what the warm-up, or the first round, of a run without a task says;
    and that other run."""
    folder = tmp_path_factory.mktemp("task")
    blank = [Question(f"t/{i}", text, None, "something") for i, text in enumerate(ASKED)]
    plain = with_task(tiny, folder / "plain", blank, task=None)
    with pytest.raises(OSError, match="dies in score"):
        Pipeline(context_of(plain, Trainers(fail_at="score"))).execute()
    adapters = [WARMUP.finished(plain).result.adapter, ALIGN.finished(plain, 1).result.adapter]
    questions = []
    for i, question in enumerate(blank):
        said = question.extract(our_answer(plain, adapters[i % 3 == 0], question))
        questions.append(replace(question, answer=said or "nothing"))
    assert {question.kind for question in questions} == {"text"}
    run = with_task(tiny, folder / "task", questions)
    with pytest.raises(OSError, match="dies in align-02"):
        Pipeline(context_of(run, Trainers(fail_at="align-02"))).execute()
    again = Trainers(fail_at="score")
    with pytest.raises(OSError, match="dies in score"):
        Pipeline(context_of(run, again)).execute()
    assert again.asked == ["align-02", "score"]
    return run, questions, plain


def rounds_of(run):
    return [ALIGN.finished(run, number).result for number in (1, 2)]


def test_each_adapter_answers_greedily_as_the_evaluation_asks_and_reads(finished):
    run, questions, _ = finished
    results = [WARMUP.finished(run).result, *rounds_of(run)]
    for result in results:
        kept = read_table(run.task_answers(result.adapter)).to_pylist()
        assert [row["id"] for row in kept] == [question.id for question in questions]
        rights = []
        for row, question in zip(kept, questions, strict=True):
            said = our_answer(run, result.adapter, question)
            assert row["generation"] == said
            assert row["extracted"] == question.extract(said)
            assert question.prompt in row["prompt"]
            rights.append(question.right(question.extract(said)))
        assert [row["right"] for row in kept] == rights
        assert (result.task.score, result.task.n) == (pytest.approx(sum(rights) / 6), 6)
    assert results[0].task.score >= 4 / 6  # those whose answers it gave


def test_a_round_is_judged_question_by_question(finished):
    run, questions, _ = finished
    assert rounds_of(run)[0].task_change.lost + rounds_of(run)[0].task_change.won > 0
    reference = WARMUP.finished(run).result.adapter
    for result in rounds_of(run):
        assert result.reference_adapter == reference
        before, after = (
            [question.right(question.extract(our_answer(run, name, question))) for question in questions]
            for name in (reference, result.adapter)
        )
        won = sum(b and not a for a, b in zip(before, after, strict=True))
        lost = sum(a and not b for a, b in zip(before, after, strict=True))
        assert result.task_change.model_dump() == {
            "before": pytest.approx(sum(before) / 6), "after": pytest.approx(sum(after) / 6),
            "won": won, "lost": lost, "questions": 6,
        }  # fmt: skip
        assert result.reason.startswith(
            f"task score {sum(before) / 6:.4f} -> {sum(after) / 6:.4f} ({won} won, {lost} lost"
        )
        assert result.validation_change.prompts > 1  # reported, and not what decides
        assert result.seconds["ask"] > 0
        reference = reference if result.decision == "reject" else result.adapter


def test_journal_report_and_trackers_say_the_measure(finished):
    run, *_ = finished
    told = [entry for entry in replay(run.journal) if entry["event"] in ("ROUND_PROMOTED", "ROUND_REJECTED")]
    assert [entry["reason"] for entry in told] == [result.reason for result in rounds_of(run)]
    for result in rounds_of(run):
        report = round_report(result)
        assert (report.task, report.task_change, report.reason) == (result.task, result.task_change, result.reason)
        assert ("proxy/task_score", result.round, result.task.score) in list(result.milestones())
        assert result.headline()["task_score"] == result.task.score
    assert ("proxy/task_score", 0, WARMUP.finished(run).result.task.score) in list(
        WARMUP.finished(run).result.milestones()
    )


def test_asking_changes_nothing_of_the_training(finished):
    run, _, plain = finished
    names = [[WARMUP.finished(one).result.adapter, rounds_of(one)[0].adapter] for one in (run, plain)]
    assert names[0] == names[1]  # by the SHA-256 of their weights
    assert WARMUP.finished(plain).result.task is None
    assert rounds_of(plain)[0].task_change is None
    assert rounds_of(plain)[0].reason.startswith("validation NLL")


def test_what_another_run_has_asked_is_taken_over_with_its_answers(finished, tiny, tmp_path):
    donor, questions, _ = finished
    run, trainers = with_task(tiny, tmp_path, questions), Trainers(fail_at="align-02")
    with pytest.raises(OSError, match="dies in align-02"):
        Pipeline(context_of(run, trainers, Lender(donor, ["corpus", "warmup", "align-01"]))).execute()
    assert trainers.asked == ["align-02"]
    names = (WARMUP.finished(donor).result.adapter, rounds_of(donor)[0].adapter)
    assert score_change(run, *names) == score_change(donor, *names)


def test_a_task_that_changed_between_two_rounds_is_refused(finished, tiny, tmp_path):
    donor, questions, _ = finished
    run = with_task(tiny, tmp_path, [*questions[:-1], replace(questions[-1], answer="else")])
    with pytest.raises(RunError, match="were not asked the same questions"):
        Pipeline(context_of(run, Trainers(), Lender(donor, ["corpus", "warmup"]))).execute()


LETTER = Question("t/a", "Which?", ("a", "b"), "B")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no question"),
        ("{\n", r"task\.jsonl line 1 is no benchmark record"),
        ('{"id": "x", "question": "q", "choices": ["a", "b"], "answer": "C"}\n', "'C' is no letter of its 2 choices"),
        ('{"id": "x", "question": "q", "answer": "C"}\n', "KeyError: 'choices'"),
        ('{"id": "x", "question": 7, "choices": null, "answer": "C"}\n', "question 7 is no text"),
        (
            '{"id": "x", "question": "Q 1", "choices": null, "answer": "is"}\n'
            '{"id": "y", "question": "q  1", "choices": null, "answer": "it"}\n',
            "x and y ask the same",
        ),
        (None, r"alignment\.task .*task\.jsonl is no file"),
    ],
)
def test_a_task_that_is_none_is_refused_before_anything_starts(tiny, tmp_path, text, message):
    run = with_task(tiny, tmp_path, [LETTER])
    path = tmp_path / "task.jsonl"
    path.write_text(text) if text is not None else path.unlink()
    with pytest.raises(BenchmarkError, match=message):
        require_text([run.config()])


@pytest.mark.parametrize("slice_name", ["warmup", "alignment", "distillation", "test"])
def test_a_question_that_is_trained_or_reported_on_is_refused(finished, streams, tiny, tmp_path, slice_name):
    prompt = read_slice(finished[0], slice_name)[0]["prompt"]
    question = Question("t/seen", f"  {prompt.upper()}", None, "something")
    run, trainers = with_task(tiny, tmp_path, [LETTER, question]), Trainers()
    refusal = (
        rf"1 of its questions are prompts .* t/seen .* is in the slice {slice_name}; remove them from alignment\.task"
    )
    with pytest.raises(BenchmarkError, match=refusal):
        require_text([run.config()])
    with pytest.raises(BenchmarkError, match=refusal):
        Pipeline(context_of(run, trainers)).execute()
    assert trainers.asked == []


def test_a_question_may_be_a_prompt_of_the_validation_slice(finished, tiny, tmp_path):
    prompt = read_slice(finished[0], "validation")[0]["prompt"]
    require_text([with_task(tiny, tmp_path, [Question("t/0", prompt, None, "something")]).config()])


def test_an_answer_has_room_by_what_is_asked_for(finished, tiny, tmp_path):
    number = Question("t/n", "How many?", None, "7")
    run = with_task(tiny, tmp_path, [LETTER, number])
    run.models.mkdir(parents=True)
    (run.models / "proxy").symlink_to(tiny)
    assert [one.room for one in task_as_asked(context_of(run, Trainers()))] == [32, 96]  # 320, but for max_length 192
    long = with_task(tiny, tmp_path / "long", [Question("t/l", "word " * 200, None, "7")])
    long.models.mkdir(parents=True)
    (long.models / "proxy").symlink_to(tiny)
    with pytest.raises(BenchmarkError, match=r"t/l takes \d+ tokens of corpus\.max_length 192 and leaves no 96"):
        task_as_asked(context_of(long, Trainers()))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"distillation": {"source": "base"}}, "distillation.source base has none"),
        ({"resources": {"parallel": "fsdp2", "trainer_workers": 2}}, "set resources.parallel=ddp"),
        ({"corpus": {"path": "c", "follow": 5}}, "corpus.follow may add its questions later"),
        ({"alignment": {"task": "t", "min_improvement": 1.5}}, "min_improvement is 1.5"),
    ],
)
def test_combinations_that_make_no_sense_are_refused(tiny, tmp_path, sections, message):
    with pytest.raises(ConfigError, match=message):
        run_config(str(tiny), str(tmp_path), **{"alignment": {"task": "t"}, "corpus": {"path": "c"}} | sections)


def test_runs_with_and_without_share_what_comes_before_the_proxy(tiny, tmp_path):
    plain, asked = (
        stage_keys(run_config(str(tiny), str(tmp_path), alignment={"rounds": 1, **extra}))
        for extra in ({}, {"task": "t"})
    )
    assert plain["corpus"] == asked["corpus"]
    assert [name for name in ("warmup", "align") if plain[name] == asked[name]] == []


def test_the_plan_knows_the_answers(tiny):
    """At full length, by so many at once as a global batch has, on one GPU; a cache of as many rows."""
    config = run_config(str(tiny), "runs", alignment={"rounds": 2, "task": "t", "global_batch": 4096})
    device = GPUS["a100-80g"]
    without, by = (
        Estimator(config, Text(100, 10.0, 10.0, **some), device) for some in ({}, {"questions": 50, "answers": 1600})
    )
    arch = require_architecture(config.proxy)
    steps = 1600 / 50
    step = max(
        (4 * arch.parameters + 50 * 20 * kv_bytes(arch, "float32")) / (device.bandwidth * device.bandwidth_share),
        50 * 2 * arch.parameters / (device.peak * device.training_share),
    )
    for stage, times in ((WARMUP, 1), (ALIGN, 2)):
        more = stage.cost(by)[-1].seconds - stage.cost(without)[-1].seconds
        assert more == pytest.approx(times * steps * step)
    plain = run_config(str(tiny), "runs", alignment={"rounds": 2, "global_batch": 4096})
    working, before = (next(f for f in footprints(one) if f.what == "trainer, proxy").parts for one in (config, plain))
    assert working["working"] == pytest.approx(4096 * 96 * kv_bytes(arch, "float32") / GIB - working["activations"])
    assert before["working"] < working["working"]
