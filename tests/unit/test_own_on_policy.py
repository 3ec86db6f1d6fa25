"""The aligned proxy judges the samples of a student that keeps its own tokenizer."""

from __future__ import annotations

from contextlib import contextmanager
from unittest import mock

import pytest
import torch

from actors.run.context import Context
from actors.run.pipeline import Pipeline
from proxykd.config import ENGINE_TOP_K, ModelConfig
from proxykd.models.loading import load_scorer
from proxykd.stages.on_policy import ON_POLICY
from proxykd.text.alignment import ByteReader
from proxykd.text.chat import ChatFormat
from proxykd.text.corpus import Record, beside_text
from proxykd.text.tokenizer import load_tokenizer
from proxykd.text.vocabulary_map import NONE, VocabularyMap
from proxykd.training.across_samples import AcrossLoss, SampleReader
from proxykd.training.stage_losses import CoarseLoss
from tests.engine_scores import told
from tests.inline_run import Trainers, context_of, make_run, stream_rows
from tests.other_tokenizer import other_model
from tests.tiny_model import make_model
from tests.unit.test_on_policy import LocalEngine

TEXTS = ("the red stone", "a small cat\nand a dark tree", "naïve", "the dog")


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return other_model(tmp_path_factory.mktemp("other") / "model")


def scorer_of(folder):
    return load_scorer(folder, ModelConfig(source=str(folder), dtype="float32", method="full"), seed=0)


def reader_of(proxy, student, max_length=96):
    sides = (ByteReader(ChatFormat(load_tokenizer(folder))) for folder in (proxy, student))
    return SampleReader(VocabularyMap(*sides), max_length)


def sample(folder, text, index=0, ids=None):
    """A row as a student of this folder samples it: the text, or these tokens."""
    chat, messages = ChatFormat(load_tokenizer(folder)), ({"role": "user", "content": "which?"},)
    ids = chat.completion_ids(text) if ids is None else ids
    prompt = chat.prompt_ids(messages)
    beside = beside_text(Record("x", messages, "what the teacher said"))
    shown = {"id": "x", "prompt": "which?", "completion": "what the teacher said", "beside": beside}
    return {**shown, "index": index, "prompt_ids": prompt, "completion_ids": ids, "length": len(prompt) + len(ids)}


def judged(reader, proxy, rows):
    found = []
    for row in rows:
        read = reader.read(row)
        scored = None if read is None else told(proxy, [read.ours.prompt_ids], [read.ours.completion_ids], ENGINE_TOP_K)
        found.append(reader.judged(row, read, scored and scored[0]))
    return found


def test_with_the_proxys_own_tokenizer_it_is_what_the_engine_tells_bit_by_bit(tiny, tmp_path):
    proxy, student = scorer_of(tiny), scorer_of(make_model(tmp_path / "student", seed=5))
    rows = [sample(tiny, text, index) for index, text in enumerate(TEXTS)]
    by_bytes = judged(reader_of(tiny, tiny), proxy, rows)
    scored = told(proxy, *([row[key] for row in rows] for key in ("prompt_ids", "completion_ids")), ENGINE_TOP_K)
    told_rows = [{**row, "judged": one} for row, one in zip(rows, scored, strict=True)]
    values, gradients = [], []
    for loss, some in ((CoarseLoss, told_rows), (AcrossLoss, by_bytes)):
        terms, metrics = loss(some, "reverse_kl")(student, some)
        values.append(terms["divergence"].item())
        gradients.append(torch.autograd.grad(terms["divergence"], list(student.parameters()), allow_unused=True))
    assert values[0] == values[1] > 0.1
    assert metrics["read"] == len(TEXTS)
    assert all(one is None if two is None else torch.equal(one, two) for one, two in zip(*gradients, strict=True))


def test_a_sample_is_read_in_the_proxys_tokens_whatever_the_student_wrote_it_with(tiny, other):
    """Letter by letter, as the student's tokenizer would never write it."""
    theirs = ChatFormat(load_tokenizer(other))
    letters = [theirs.tokenizer.encode(letter, add_special_tokens=False)[0] for letter in "the red"]
    ids = [*letters, theirs.stop_token_id]
    assert ids != theirs.completion_ids("the red")
    read = reader_of(tiny, other).read(sample(other, "", ids=ids))
    ours = ChatFormat(load_tokenizer(tiny))
    assert read.ours.completion_ids == ours.completion_ids("the red")
    assert read.ours.prompt_ids == ours.prompt_ids([{"role": "user", "content": "which?"}])
    assert read.pairing.proxy_at_N[-1] == len(read.ours.completion_ids) - 1  # stop beside stop
    assert read.pairing.chunks_S4[:, 3].sum() == 7


def test_the_end_of_a_sample_that_ran_out_of_room_is_no_chunk(tiny, other):
    """The proxy has ` small` in one token, and would write ` smal` before nothing but the end."""
    theirs = ChatFormat(load_tokenizer(other))
    reader = reader_of(tiny, other)
    cut = reader.read(sample(other, "", ids=theirs.completion_ids("the smal", stopped=False)))
    whole = reader.read(sample(other, "the smal"))
    tokens = len(cut.pairing.proxy_at_N)
    *_, first, length = whole.pairing.chunks_S4[-1].tolist()
    assert first + length == tokens  # the stop token stands behind it
    assert all(first + length < tokens for *_, first, length in cut.pairing.chunks_S4.tolist())
    assert len(cut.pairing.chunks_S4) == len(whole.pairing.chunks_S4) - 1


def test_what_nobody_can_read_says_nothing(tiny, other):
    theirs = ChatFormat(load_tokenizer(other))
    within = theirs.completion_ids("ï", stopped=False)[:1]
    reader, proxy, student = reader_of(tiny, other), scorer_of(tiny), scorer_of(other)
    lost = sample(other, "", ids=[*within, theirs.stop_token_id])
    assert reader.read(lost) is None
    assert reader_of(tiny, other, max_length=12).read(sample(other, "the red stone")) is None
    rows = judged(reader, proxy, [lost, sample(other, "the red stone", 1)])
    assert [row["read"] for row in rows] == [False, True]
    terms, metrics = AcrossLoss(rows, "jsd")(student, rows)
    assert metrics["read"] == 1
    alone = AcrossLoss(rows, "jsd")(student, rows[1:])[0]
    assert terms["divergence"].item() == pytest.approx(alone["divergence"].item(), rel=1e-5)
    assert alone["divergence"].item() > 0
    silent = AcrossLoss(rows, "jsd")(student, rows[:1])[0]["divergence"]
    assert silent.item() == 0
    silent.backward()
    assert all(one.grad is None or not one.grad.any() for one in student.parameters())


def test_what_is_no_plain_text_is_not_read(tiny, other):
    """A call of tools, or a control token in a text, which each side writes otherwise; another stop token."""
    reader, theirs = reader_of(tiny, other), ChatFormat(load_tokenizer(other))
    assert reader.read(sample(other, "the red stone")) is not None
    row = sample(other, "the red stone")
    tools = Record("x", ({"role": "user", "content": "which?"},), "", tools=({"name": "look"},))
    assert reader.read({**row, "beside": beside_text(tools)}) is None
    assert reader.read(sample(other, "write <|endoftext|> here")) is None  # the proxy's alone
    stop = theirs.tokenizer.convert_tokens_to_ids("<|stop|>")
    ids = [*theirs.completion_ids("the red", stopped=False), stop]
    assert reader.read(sample(other, "", ids=ids)) is None


def test_a_student_learns_what_the_proxy_says_of_one_sample(tiny, other):
    """Against the divergence of all outcomes that both have at the first token, from both whole distributions."""
    proxy, student, reader = scorer_of(tiny), scorer_of(other), reader_of(tiny, other)
    row = sample(other, "the red stone")
    read = reader.read(row)
    [done] = judged(reader, proxy, [row])
    assert read.pairing.proxy_at_N[0] != NONE or len(read.pairing.chunks_S4)
    values = []
    optimizer = torch.optim.Adam(student.parameters(), 1e-3)
    for _ in range(20):
        loss = AcrossLoss([done], "reverse_kl")(student, [done])[0]["divergence"]
        values.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert values[-1] < values[0] / 2


@pytest.mark.parametrize("source", ["trainer", "engine"])
def test_the_phase_through_a_whole_run(source, tiny, other, tmp_path, monkeypatch):
    stream_rows(monkeypatch)
    student = {"source": str(other), "tokenizer": "own", "dtype": "float32", "method": "full"}
    phase = {"learning_rate": 1e-3, "global_batch": 8, "evaluations": 1, "max_new_tokens": 8, "keep": "last"}
    distillation = {"learning_rate": 3e-3, "global_batch": 4, "epochs": 2}
    run = make_run(
        tiny,
        tmp_path,
        student=student,
        alignment={"rounds": 0},
        distillation=distillation,
        on_policy={**phase, "source": source},
    )
    engines = []

    @contextmanager
    def engine(_, adapter):
        engines.append(adapter)
        yield LocalEngine(run, adapter)

    trainers = Trainers()
    with mock.patch.object(Context, "proxy_engine", engine):
        Pipeline(context_of(run, trainers)).execute()
    assert bool(engines) == (source == "engine")
    result = ON_POLICY.finished(run).result
    assert result.records == len(trainers.streamed["distil"])
    read = [step["read"] for step in result.steps]  # of random bytes, which few of so young a student's samples are not
    assert 0 < sum(read) < len(read)
    assert all((step["divergence"] > 0) == (step["read"] > 0) for step in result.steps)
