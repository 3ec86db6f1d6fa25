"""The pipeline's own decisions, without what it drives."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from actors.run import alignment
from actors.run.pipeline import Pipeline
from actors.telemetry.event_types import Warned
from proxykd.data.corpus_store import write_corpus
from proxykd.data.ingest import Source
from proxykd.errors import CorpusError
from proxykd.evaluation.fidelity import RecordScores
from proxykd.evaluation.validation_scores import write_validation
from proxykd.report.adapter_catalogue import adapters_in_force
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import read_json, write_json
from proxykd.stages.align import ALIGN, TrainedRound
from proxykd.stages.warmup import WARMUP, WarmupResult
from tests.inline_run import context_of
from tests.small_run import run_config
from tests.stage_results import learned


class Begun(Exception):
    """Training was begun."""


def test_more_rounds_than_records_are_refused_before_anything_is_trained(tmp_path, monkeypatch):
    def context(name, **alignment):
        config = run_config("none", str(tmp_path / name), alignment={"max_new_tokens": 12, **alignment})
        run = RunDirectory.create(config)
        write_json(run.corpus / "manifest.json", {"alignment": 3, "warmup": 1, "dropped": {}, "sources": []})
        return SimpleNamespace(run=run, config=config, data_pool=None, train=begin)

    def begin(*_):
        raise Begun

    monkeypatch.setattr(alignment, "stream_corpus", lambda *_: None)

    with pytest.raises(CorpusError, match=r"the alignment slice has 3 records for alignment\.rounds=4"):
        alignment.warm_up(context("few", rounds=4), None)
    for enough in (context("enough", rounds=3), context("wrapped", rounds=4, pairs_per_round=2)):
        with pytest.raises(Begun):
            alignment.warm_up(enough, None)


TOKENS = [10] * 12
PROMPTS = [f"p{i}" for i in range(12)]


class Trainer:
    """Stands for the training: each adapter has the validation NLLs that the test gives it."""

    def __init__(self, run, nlls):
        self.run, self.nlls, self.asked = run, list(nlls), []

    def __call__(self, key, loop, task, stream):
        self.asked.append((key, getattr(task, "reference", None)))
        adapter = f"a{len(self.asked) - 1}"
        nll = [10 * value for value in self.nlls[len(self.asked) - 1]]
        scores = RecordScores(TOKENS, nll, [0.0] * 12, PROMPTS)
        write_validation(self.run, adapter, scores)
        trained = {"adapter": adapter, "validation": scores.fidelity(), "nll_loss": nll[0], **learned(nll[0])}
        if key == "warmup":
            return WarmupResult(base=scores.fidelity(), **trained)
        return TrainedRound(seconds={"train": 1.0}, **trained)


class Rounds:
    """The alignment alone."""

    def __init__(self, context):
        self.context = context

    def align_in_rounds(self):
        pipeline = Pipeline(self.context)
        for stage in (WARMUP, ALIGN):
            pipeline.do(stage)
        return self.context.aligned_adapter(), pipeline.stop_reason


@pytest.fixture
def rounds(tiny, tmp_path, monkeypatch):
    """The pipeline of a run with up to five rounds, whose adapters have the given NLLs; and what was asked of training."""
    five = {"rounds": 5, "preference": False, "max_new_tokens": 12}
    config = run_config(str(tiny), str(tmp_path / "runs"), alignment=five)
    run = RunDirectory.create(config)
    rows = [{"id": str(i), "prompt": f"Which is {i}?", "completion": f"It is {i}."} for i in range(60)]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_corpus(run, config, Source((str(tmp_path / "c.jsonl"),)), tiny)
    monkeypatch.setattr(alignment, "stream_corpus", lambda *_: None)

    def start(nlls):
        trainer, context = Trainer(run, nlls), context_of(run, None)
        context.train = trainer
        return Rounds(context), trainer

    return run, start


def level(nll, spread=0.0):
    """NLLs of the 12 records, every other one above and below by `spread`."""
    return [nll + spread * (-1) ** i for i in range(12)]


def test_rounds_go_on_through_noise_and_end_when_surely_idle(rounds):
    """A mean that stands still because half of the records rise and half fall is noise; one where none moves is not."""
    run, start = rounds
    noisy, still = level(2.0, 0.1), level(2.0, 0.1)
    pipeline, trainer = start([level(2.0), noisy, level(2.0), noisy, still, still])
    adapter, reason = pipeline.align_in_rounds()
    assert (adapter, len(trainer.asked)) == ("a5", 6)
    assert reason == "all 5 rounds done"
    found = [read_json(run.stages / f"align-{number:02d}.json")["result"] for number in range(1, 6)]
    assert [one["validation_change"]["nll"] for one in found] == pytest.approx([0.0] * 5)
    expected = 0.1 / 11**0.5  # a mean of 12 values, each 0.1 away from it
    assert found[0]["validation_change"]["stderr"] == pytest.approx(expected)
    assert found[4]["validation_change"] == {"nll": 0.0, "stderr": 0.0, "prompts": 12}
    assert read_json(run.round(1) / "metrics.json")["validation_change"] == found[0]["validation_change"]


def test_a_rejected_round_is_left_out_and_a_resumed_run_decides_the_same(rounds):
    run, start = rounds
    nlls = [level(2.0), level(1.9, 0.02), level(2.5, 0.02), level(1.899, 0.02), level(1.898, 0.02)]
    first, trainer = start(nlls)
    adapter, reason = first.align_in_rounds()
    assert [reference for _, reference in trainer.asked] == [None, "a0", "a1", "a1"]
    assert adapter == "a3"
    assert reason.startswith(
        "converged: validation NLL improved by less than 0.005 nats a token for 2 rounds (rejected; "
    )
    assert [one["adapter"] for one in adapters_in_force(run)] == ["a0", "a1", "a1", "a3"]
    rejected = read_json(run.stages / "align-02.json")["result"]
    assert rejected["decision"] == "reject"
    assert rejected["reason"] == ("validation NLL 1.9000 -> 2.5000 (+0.6000 ± 0.0000 nats a token): surely worse")
    again, idle = start(nlls)
    assert again.align_in_rounds() == (adapter, reason)
    assert idle.asked == []


def test_a_rise_within_its_error_is_promoted_with_a_warning(rounds):
    run, start = rounds
    warnings = []
    pipeline, _ = start([level(2.0), level(2.06, 0.2), *[level(1.9 - 0.1 * i) for i in range(4)]])
    pipeline.context.events.emit = lambda event: warnings.append(event.message) if isinstance(event, Warned) else None
    pipeline.align_in_rounds()
    assert read_json(run.stages / "align-01.json")["result"]["decision"] == "promote"
    assert len(warnings) == 1
    assert "(+0.0600 ± 0.0603 nats a token): better or worse, within its error" in warnings[0]
