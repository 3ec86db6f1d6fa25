"""A whole run on the tiny model, in this process: every stage once, resumed, and taken over."""

from __future__ import annotations

import pytest

from actors.run.imports import imported
from actors.run.pipeline import Pipeline
from proxykd.data.corpus_store import read_slice
from proxykd.errors import CorpusError, IntegrityError
from proxykd.report.adapter_catalogue import adapters_in_force
from proxykd.report.run_report import build_report
from proxykd.runs.journal import Journal
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import read_json
from proxykd.stages.align import ALIGN
from proxykd.stages.results import Results
from proxykd.stages.stage import Stage
from proxykd.stages.table import STAGES
from proxykd.stages.warmup import WARMUP
from tests.inline_run import Lender, Trainers, context_of, make_run
from tests.stage_results import aligned, finish, warmed_up

TRAINED = ["warmup", "align-01", "align-02", "score", "distil", "evaluate"]


@pytest.fixture(scope="module")
def finished(streams, tiny, tmp_path_factory):
    """A run whose machine died as the student was to be trained, and what was trained before and afterwards."""
    run = make_run(tiny, tmp_path_factory.mktemp("inline"))
    before, after = Trainers(fail_at="distil"), Trainers()
    with pytest.raises(OSError, match="dies in distil"):
        Pipeline(context_of(run, before)).execute()
    Pipeline(context_of(run, after)).execute()
    return run, before.asked, after.asked


def test_a_resumed_run_does_what_is_left(finished):
    run, before, after = finished
    assert before == TRAINED[:5]
    assert after == TRAINED[4:]
    keys = [stage.key for stage in Results.read(run).stages]
    assert keys == ["models", "corpus", *TRAINED]
    assert read_json(run.stages / "distil.json")["attempts"] == 2


def test_a_finished_run_does_nothing_again(finished):
    idle = Trainers()
    Pipeline(context_of(finished[0], idle)).execute()
    assert idle.asked == []


def test_rounds_without_the_preference_loss_need_no_samples(finished):
    run, *_ = finished
    for told in build_report(run, "told").rounds:
        assert told.pairs == len(read_slice(run, "alignment")) // 2
        assert told.dpo_loss is None
        assert told.nll_loss > 0
        assert not run.pairs(told.round).exists()


def test_what_another_run_has_made_is_taken_over_with_its_files(finished, streams, tiny, tmp_path):
    donor, *_ = finished
    run, trainers = make_run(tiny, tmp_path, distillation={"alpha": 0.5, "global_batch": 8}), Trainers()
    lent = ["corpus", "warmup", "align-01", "align-02", "score"]
    Pipeline(context_of(run, trainers, Lender(donor, lent))).execute()
    assert trainers.asked == ["distil", "evaluate"]
    taken = [stage.key for stage in Results.read(run).stages if stage.adopted_from == donor.id]
    assert taken == lent
    assert (run.student / "model.safetensors").read_bytes() != (donor.student / "model.safetensors").read_bytes()
    ours, theirs = (build_report(one, "told") for one in (run, donor))
    assert (ours.proxy, ours.trust, ours.rounds) == (theirs.proxy, theirs.trust, theirs.rounds)


def test_a_student_that_learns_the_shift_takes_over_the_proxys_labels(finished, streams, tiny, tmp_path):
    donor, *_ = finished
    learning = {"source": "shift", "learning_rate": 2e-3, "global_batch": 8, "kl_reduction": "token_sum", "alpha": 2.0}
    run, trainers = make_run(tiny, tmp_path, distillation=learning), Trainers()
    lent = ["corpus", "warmup", "align-01", "align-02", "score"]
    Pipeline(context_of(run, trainers, Lender(donor, lent))).execute()
    assert trainers.asked == ["distil", "evaluate"]
    ours, theirs = (build_report(one, "told") for one in (run, donor))
    assert (ours.trust, ours.student.before) == (theirs.trust, theirs.student.before)
    assert ours.student.loss_share.keys() == theirs.student.loss_share.keys() == {"nll", "kl"}
    assert ours.student.after != theirs.student.after


def test_a_student_of_the_base_needs_no_rounds(finished, streams, tiny, tmp_path):
    learning = {"source": "base", "learning_rate": 2e-3, "global_batch": 8, "kl_reduction": "token_sum", "alpha": 2.0}
    run, trainers = make_run(tiny, tmp_path, distillation=learning), Trainers()
    Pipeline(context_of(run, trainers, Lender(finished[0], ["corpus"]))).execute()
    assert trainers.asked == ["score", "distil", "evaluate"]
    report = build_report(run, "told")
    assert report.trust.adapter == "base"
    assert report.proxy.aligned == report.proxy.base
    assert report.rounds == []


def test_a_student_of_the_text_alone_needs_no_proxy(finished, streams, tiny, tmp_path):
    learning = {"source": "none", "learning_rate": 2e-3, "global_batch": 8}
    run, trainers = make_run(tiny, tmp_path, distillation=learning), Trainers()
    Pipeline(context_of(run, trainers, Lender(finished[0], ["corpus"]))).execute()
    assert trainers.asked == ["distil", "evaluate"]
    report = build_report(run, "told")
    assert report.proxy is report.soft_labels is report.trust is None
    assert report.student.loss_share == {"nll": 1.0}
    assert report.student.after.held_out_nll < report.student.before.held_out_nll


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_every_stage_has_its_body(stage: Stage):
    assert callable(imported(stage.body))
    assert (stage.ended is None) == (stage.rounds is None)
    assert stage.ended is None or callable(imported(stage.ended))
    assert set(stage.inputs) <= {other.name for other in STAGES[: STAGES.index(stage)]}


def test_a_journal_with_a_stage_of_another_version_is_refused_by_name(finished, tmp_path):
    run = RunDirectory(tmp_path / "run")
    Journal(run.journal, host="h", job=None, cluster_pid=None).append("STAGE_STARTED", stage="polish", round=None)
    with pytest.raises(IntegrityError, match="names the stage 'polish', which this version of proxykd does not have"):
        Results.read(run)


def test_a_round_beyond_the_hundredth_comes_last(tmp_path):
    run = RunDirectory(tmp_path / "run")
    finish(run, WARMUP, warmed_up("w"))
    for number in (11, 100):
        finish(run, ALIGN, aligned(number, f"a{number}"), number)
    assert [one["adapter"] for one in adapters_in_force(run)] == ["w", "a11", "a100"]


def test_too_few_records_for_the_rounds_are_refused_though_the_warm_up_is_taken_over(finished, streams, tiny, tmp_path):
    many = {"rounds": 40, "preference": False, "global_batch": 8}
    run, trainers = make_run(tiny, tmp_path, alignment=many), Trainers()
    with pytest.raises(CorpusError, match=r"alignment\.rounds=40"):
        Pipeline(context_of(run, trainers, Lender(finished[0], ["corpus", "warmup"]))).execute()
    assert trainers.asked == []
