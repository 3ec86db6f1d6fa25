"""A student that keeps its own tokenizer learns the proxy's labels by bytes, through a whole run."""

from __future__ import annotations

import json

import pytest
import torch

from actors.run.pipeline import Pipeline
from proxykd.config import DistillationConfig
from proxykd.data.corpus_store import slice_shards
from proxykd.data.label_shards import LabelledShard, labelled_rows, unpack_labels
from proxykd.data.retokenised import student_ranges, student_slice
from proxykd.data.row_ranges import read_ranges, read_shard_rows
from proxykd.errors import AlignmentError, ConfigError, ModelError
from proxykd.models.loading import load_scorer
from proxykd.report.run_report import build_report
from proxykd.runs.adapter_names import BASE
from proxykd.stages.distil import DISTIL
from proxykd.stages.evaluate import EVALUATE, STUDENT_AFTER, STUDENT_BEFORE, STUDENT_SFT
from proxykd.stages.retokenise import RETOKENISE
from proxykd.stages.score import SCORE
from proxykd.stages.table import stage_keys
from proxykd.text.chat import ChatFormat
from proxykd.text.corpus import Record, beside_text, record_of
from proxykd.text.tokenizer import load_tokenizer
from proxykd.training.across_losses import AlignedDistillationLoss
from proxykd.training.stage_losses import DistillationLoss
from tests.inline_run import Trainers, context_of, make_run, stream_rows
from tests.other_tokenizer import other_model
from tests.small_run import run_config
from tests.tiny_model import corpus_rows


def sections(folder, **more):
    student = {"source": str(folder), "tokenizer": "own", "dtype": "float32", "method": "full"}
    sft = {"learning_rate": 1e-3, "global_batch": 8, "epochs": 1}
    return {"student": student, "sft": sft, **more}


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        stream_rows(patch)
        run = make_run(tiny, folder, **sections(other_model(folder / "other")))
        trainers = Trainers()
        Pipeline(context_of(run, trainers)).execute()
        yield run, trainers


def test_the_student_reads_the_same_text_in_its_own_tokens(finished):
    run, trainers = finished
    theirs = ChatFormat(load_tokenizer(run.models / "student"))
    assert theirs.tokenizer.get_vocab() != load_tokenizer(run.models / "proxy").get_vocab()
    texts = {row["id"]: row for row in corpus_rows(48)}
    rows = trainers.streamed["distil"]
    assert {row["id"] for row in rows} == {
        row["id"] for path in slice_shards(run, "distillation") for row in read_shard_rows(path)
    }
    for row in [*rows, *student_slice(run, "test"), *trainers.streamed["sft"]]:
        text = texts[row["id"]]
        assert theirs.decode(row["completion_ids"]) == text["completion"]
        assert row["prompt_ids"] == theirs.prompt_ids([{"role": "user", "content": text["prompt"]}])
    assert load_tokenizer(run.student).get_vocab() == theirs.tokenizer.get_vocab()


def test_what_the_stage_counted_is_what_its_rows_hold(finished):
    run, _ = finished
    found = RETOKENISE.finished(run).result
    names = {"validation", "test", "warmup", "alignment", "distillation"}
    rows = [row for name in names for row in read_ranges(student_ranges(run, name))]
    assert (found.records, found.dropped) == (len(rows), {})
    assert found.tokens == sum(len(row["completion_ids"]) for row in rows)
    assert found.proxy_tokens == sum(len(row["proxy_ids"]) for row in rows)
    ours, theirs = (load_tokenizer(run.models / name) for name in ("proxy", "student"))
    alone = [
        (ours.decode(row["proxy_ids"][at]), theirs.decode(one))
        for row in rows
        for one, at in zip(row["completion_ids"], row["proxy_at"], strict=True)
        if at >= 0
    ]
    assert all(mine == other for mine, other in alone)
    assert found.one_to_one == len(alone) / found.tokens
    assert 0.2 < found.one_to_one < 1
    assert sum(kind.share for kind in found.mass.values()) == pytest.approx(1)
    assert 0.5 < found.mapped < 1  # the proxy's longer words are paths; what would merge has no image


def test_the_student_learns_and_families_compare_by_the_byte(finished):
    run, _ = finished
    models = EVALUATE.finished(run).result.models
    before, after, sft = (models[name].fidelity for name in (STUDENT_BEFORE, STUDENT_AFTER, STUDENT_SFT))
    assert after.held_out_nll < before.held_out_nll
    letters = sum(len(row["completion"].encode()) for row in student_slice(run, "test"))
    for one in (before, after, sft, models[BASE].fidelity):
        assert one.nll_a_byte == pytest.approx(one.held_out_nll * one.tokens / letters)
    assert models[BASE].fidelity.tokens != after.tokens
    assert DISTIL.finished(run).result.loss_share["kl"] > 0
    assert build_report(run, "done").student.after == after


def test_with_the_proxys_own_tokenizer_loss_and_gradient_are_the_same_tensors(tiny, tmp_path, monkeypatch):
    """Every token is then one to one and its own image."""
    stream_rows(monkeypatch)
    student = {"source": str(tiny), "tokenizer": "own", "drop_layers": [3], "dtype": "float32", "method": "full"}
    run = make_run(tiny, tmp_path, student=student, alignment={"rounds": 0})
    Pipeline(context_of(run, Trainers())).execute()
    found, scored = RETOKENISE.finished(run).result, SCORE.finished(run).result
    assert (found.one_to_one, found.in_chunks, found.mapped) == (1.0, 0.0, pytest.approx(1.0))
    context = context_of(run, Trainers())
    source = context.label_source(scored.adapter)
    labels = run.soft_labels(scored.adapter)
    losses, gradients = [], []
    for loss, ranges in ((DistillationLoss, slice_shards(run, "distillation")), (AlignedDistillationLoss, None)):
        paths = ranges or [run.retokenised / "distillation" / p.name for p in slice_shards(run, "distillation")]
        rows = [
            unpack_labels(row, source)
            for path in paths
            for row in labelled_rows((LabelledShard(path, labels / path.name),), source, lambda *_: 0.7)
        ][:8]
        scorer = load_scorer(run.models / "student", run.config().student)
        terms, _ = loss(rows, DistillationConfig(alpha=3.0))(scorer, rows)
        sum(terms.values()).backward()
        losses.append({name: value.item() for name, value in terms.items()})
        gradients.append([one.grad for one in scorer.parameters() if one.grad is not None])
    assert losses[0] == losses[1]
    assert all(map(torch.equal, *gradients))


def test_the_true_kl_to_another_tokenizer_is_told_where_both_can_be_cut(tiny, tmp_path, monkeypatch):
    """The teacher is the tiny model itself, its text given: a student that is the teacher, in its tokens, has none; in
    tokens of its own it is what the pieces add up to."""
    stream_rows(monkeypatch)
    same = {"source": str(tiny), "tokenizer": "own", "dtype": "float32", "method": "full"}
    teacher = {"model": "tiny", "local": {"source": str(tiny), "dtype": "float32"}}
    sealed = {"teacher": teacher, "alignment": {"rounds": 0}}
    run = make_run(tiny, tmp_path / "same", student=same, **sealed)
    Pipeline(context_of(run, Trainers())).execute()
    models = EVALUATE.finished(run).result.models
    assert models[STUDENT_BEFORE].true_kl.kl == pytest.approx(0, abs=1e-5)
    full = models[BASE].true_kl.kl  # of the proxy, over the whole vocabulary
    assert full > 0.01
    other = make_run(tiny, tmp_path / "other", **sections(other_model(tmp_path / "model"), **sealed))
    Pipeline(context_of(other, Trainers())).execute()
    models = EVALUATE.finished(other).result.models
    assert 0 < models[STUDENT_AFTER].true_kl.kl < models[STUDENT_BEFORE].true_kl.kl


def test_arms_of_several_students_share_the_proxy_and_its_labels(tiny, tmp_path):
    other = other_model(tmp_path / "other")
    one = make_run(tiny, tmp_path / "a").config()
    two = make_run(tiny, tmp_path / "b", **sections(other)).config()
    two = two.model_copy(update={"corpus": one.corpus})
    ours, theirs = stage_keys(one), stage_keys(two)
    assert {name for name in ours if name != "evaluate" and ours[name] == theirs.get(name)} >= {
        "corpus",
        "warmup",
        "score",
    }
    assert ours["distil"] != theirs["distil"]
    assert "retokenise" not in ours


def test_sorted_probabilities_train_too(finished, tmp_path, tiny, monkeypatch):
    stream_rows(monkeypatch)
    run, _ = finished
    other = run.config().student.source
    distillation = {
        "across": "uld",
        "learning_rate": 2e-3,
        "global_batch": 8,
        "kl_reduction": "token_sum",
        "alpha": 1.0,
    }
    uld = make_run(tiny, tmp_path, **sections(other, distillation=distillation, alignment={"rounds": 0}))
    Pipeline(context_of(uld, Trainers())).execute()
    models = EVALUATE.finished(uld).result.models
    assert models[STUDENT_AFTER].fidelity.held_out_nll < models[STUDENT_BEFORE].fidelity.held_out_nll


def test_a_tokenizer_that_changes_the_text_is_refused_before_anything_is_trained(tiny, tmp_path):
    from tokenizers import normalizers

    other = other_model(tmp_path / "other", normalizers.Lowercase())
    run, trainers = make_run(tiny, tmp_path, **sections(other)), Trainers()
    with pytest.raises(AlignmentError, match="does not keep the text: at byte"):
        Pipeline(context_of(run, trainers)).execute()
    assert trainers.asked == []


def test_another_tokenizer_has_to_be_asked_for(tiny, tmp_path):
    other = other_model(tmp_path / "other")
    run = make_run(tiny, tmp_path, student={"source": str(other), "dtype": "float32", "method": "full"})
    with pytest.raises(ModelError, match=r"have different tokenizers .* or set student.tokenizer=own"):
        Pipeline(context_of(run, Trainers())).execute()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"distillation": {"source": "shift"}}, "distillation.source shift compares whole distributions"),
        ({"on_policy": {"judge": "proxy"}, "corpus": {"path": "c", "reasoning": "train"}}, "reads no thoughts"),
        ({"score": {"method": "drawn", "source": "trainer"}}, "need score.method top_k"),
        ({"proxy": {"source": "x", "tokenizer": "own"}}, "proxy.tokenizer is 'own', which is for students alone"),
    ],
)
def test_what_needs_one_vocabulary_is_refused(more, said, tmp_path):
    student = {"source": "y", "tokenizer": "own", "dtype": "float32", "method": "full"}
    with pytest.raises(ConfigError, match=said):
        run_config("x", str(tmp_path), **({"student": student} | more))


@pytest.mark.parametrize(
    "record",
    [
        Record("a", ({"role": "user", "content": "x"},), "y"),
        Record("b", ({"role": "system", "content": "s"}, {"role": "user", "content": "x"}), "y", stopped=False),
        Record(
            "c",
            ({"role": "user", "content": "x", "name": "n"},),
            "",
            reasoning="r",
            tool_calls=({"id": 1},),
            tools=({},),
        ),
    ],
)
def test_a_row_of_the_corpus_holds_its_whole_record(record):
    row = {"id": record.id, "prompt": record.messages[-1]["content"], "completion": record.completion}
    assert record_of({**row, "beside": beside_text(record)}) == record
    assert json.loads(beside_text(record)) == ({} if record.id == "a" else json.loads(beside_text(record)))
