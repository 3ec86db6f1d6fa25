"""A stage more, by one entry and one loop (tests/toy_stage.py): it runs, resumes, is shared, planned and reported."""

from __future__ import annotations

import pytest

from actors.run.pipeline import Pipeline
from proxykd.costs.devices import GPUS
from proxykd.costs.estimator import Text
from proxykd.planning.requirements import cpus_needed
from proxykd.planning.time_plan import estimate
from proxykd.report.overview import overview
from proxykd.report.run_report import build_report
from proxykd.runs.storage import read_json, write_json
from proxykd.stages import table
from proxykd.stages.table import STAGES, stage_keys, stages_of
from tests.inline_run import Lender, Trainers, context_of, make_run, stream_rows
from tests.small_run import run_config
from tests.toy_stage import TOY

TRAINED = ["warmup", "align-01", "align-02", "score", "distil", "evaluate"]


@pytest.fixture(scope="module")
def donor(tiny, tmp_path_factory):
    """A finished run without it."""
    with pytest.MonkeyPatch.context() as patch:
        stream_rows(patch)
        run = make_run(tiny, tmp_path_factory.mktemp("donor"))
        Pipeline(context_of(run, Trainers())).execute()
        yield run


@pytest.fixture
def with_toy(monkeypatch):
    monkeypatch.setattr(table, "STAGES", (*STAGES[:-1], TOY, STAGES[-1]))


def test_one_entry_and_one_loop_are_a_stage_that_runs_and_is_reported(with_toy, tiny, tmp_path, donor):
    run, trainers = make_run(tiny, tmp_path, name="with-toy"), Trainers(fail_at="toy")
    lender = Lender(donor, ["corpus", *TRAINED[:5]])
    with pytest.raises(OSError, match="dies in toy"):
        Pipeline(context_of(run, trainers, lender)).execute()
    write_json(run.outcome("toy"), {})  # the workers were done, and nobody lived to read it
    trainers = Trainers()
    Pipeline(context_of(run, trainers, lender)).execute()
    assert trainers.asked == ["toy", "evaluate"]
    assert not list(run.outcomes.iterdir())
    result = TOY.finished(run).result
    assert result.tokens_read > 0
    [toy] = [stage for stage in build_report(run, "told").stages if stage.stage == "toy"]
    assert (toy.records, toy.tokens) == (5, result.tokens_read)
    assert ("toy", "done") in [(stage.stage, stage.state) for stage in overview(run).pipeline]
    assert ("toy/tokens_read", 0, result.tokens_read) in TOY.finished(run).milestones()


def test_it_is_shared_by_its_key(with_toy, tiny, tmp_path, donor):
    run, other = (make_run(tiny, tmp_path / name, name=name) for name in ("one", "other"))
    lender = Lender(donor, ["corpus", *TRAINED[:5]])
    Pipeline(context_of(run, Trainers(), lender)).execute()
    trainers = Trainers()
    Pipeline(context_of(other, trainers, Lender(run, ["corpus", *TRAINED, "toy"]))).execute()
    assert trainers.asked == []
    assert read_json(other.root / "toy" / "seen.json") == read_json(run.root / "toy" / "seen.json") != []
    mine = stage_keys(run.config())
    longer = run.config().model_copy(update={"corpus": run.config().corpus.model_copy(update={"max_length": 64})})
    assert mine["toy"] == stage_keys(run_config(str(tiny), "r", corpus=run.config().corpus.model_dump()))["toy"]
    assert mine["toy"] != stage_keys(longer)["toy"]


def test_it_is_planned(with_toy, tiny):
    config, text = run_config(str(tiny), "runs"), Text(100, 10.0, 10.0)
    assert "toy" in [one.stage for one in estimate(config, text, GPUS["a100-80g"])]
    assert cpus_needed(config) == 1 + 3 * 2
    assert TOY not in stages_of(run_config(str(tiny), "runs", distillation={"source": "none"}))
