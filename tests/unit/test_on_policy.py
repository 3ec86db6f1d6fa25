"""The on-policy phase: on ranks, after deaths, by validation, until its samples drift, and as a stage of a whole run."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file

from actors.run.context import Context
from actors.run.pipeline import Pipeline
from actors.telemetry.event_files import read_events
from proxykd.config import OnPolicyConfig
from proxykd.data.corpus_store import read_slice
from proxykd.errors import ConfigError
from proxykd.evaluation.fidelity import RecordScores
from proxykd.models.loading import load_scorer, merge_adapter
from proxykd.report.adapter_catalogue import adapters_in_force
from proxykd.report.overview import overview
from proxykd.report.run_report import build_report
from proxykd.runs.run_directory import RunDirectory
from proxykd.stages.distil import DISTIL
from proxykd.stages.evaluate import EVALUATE
from proxykd.stages.on_policy import ON_POLICY
from proxykd.stages.table import stage_keys
from proxykd.training.drift import drift, repeated_4grams, watched
from proxykd.training.loops import on_policy as loop_module
from proxykd.training.loops.on_policy import OnPolicyTask, on_policy
from proxykd.training.stage_losses import REFERENCE_KEYS, AlignmentLoss, pair_logps
from proxykd.training.trainer import Step, Trainer
from proxykd.training.worker import Worker
from tests import inline_run
from tests.engine_scores import told
from tests.forks import on_ranks
from tests.small_run import make_adapter, run_config
from tests.stage_ranks import make_run, worker_of

PHASE = {"learning_rate": 5e-3, "global_batch": 4, "evaluations": 2, "max_new_tokens": 12}
LORA = {"method": "lora", "lora": {"rank": 4, "alpha": 8}}


def prepare(tiny, folder, world=1, student=None, **phase):
    """A run whose student is as it came, with a proxy that another adapter makes differ from it; its rows."""
    model = {"source": str(tiny), "drop_layers": [2, 3], "dtype": "float32", "method": "full"} | (student or {})
    resources = {"trainer_threads": 1, "trainer_workers": world, "checkpoint_seconds": 0.0, "micro_batch_tokens": 256}
    run = make_run(tiny, folder, on_policy={**PHASE, **phase}, student=model, resources=resources)
    merge_adapter(run.models / "student", None, run.offline_student, "float32")
    make_adapter(run, 1)
    return run, read_slice(run, "distillation")[:10]


def train(run, rows, die_at=None):
    """The phase's result; killed before step `die_at`."""
    step = Trainer.step

    def mortal(trainer, *arguments):
        if trainer.steps == die_at:
            raise InterruptedError
        return step(trainer, *arguments)

    adapter = next(path.name for path in run.adapters.iterdir() if path.name.startswith("r01"))
    asked = run.config().on_policy.source == "engine"
    task = OnPolicyTask(len(rows), engine=LocalEngine(run, adapter)) if asked else OnPolicyTask(len(rows), adapter)
    with mock.patch.object(Trainer, "step", mortal):
        return on_policy(worker_of(run, "on_policy", rows), task)


class LocalEngine:
    """The proxy's log-probs as its engine tells them, by a forward pass here; also as a stage's body is given it."""

    def __init__(self, run, adapter):
        self._scorer = load_scorer(
            run.models / "proxy", run.config().proxy, adapter=run.adapters / adapter, trainable=False
        )
        self.asked = []

    def __call__(self, method="score", *, prompts, completions, top_k):
        assert (method, top_k) == ("score", 20)
        self.asked.append(completions)
        return told(self._scorer, prompts, completions, top_k)


def weights(folder):
    return load_file(folder / "model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


CASES = {
    "proxy": {"judge": "proxy"},
    "engine": {"source": "engine"},
    "preference": {"judge": "preference", "student": LORA},
}


@pytest.mark.parametrize("case", CASES)
def test_the_phase_trains_from_the_offline_student_and_leaves_that_alone(tiny, tmp_path, case):
    run, rows = prepare(tiny, tmp_path, keep="last", **CASES[case])
    before = weights(run.offline_student)
    result = train(run, rows)
    assert (len(result.steps), result.kept, result.records, result.drift) == (3, 3, 10, None)
    assert [point.step for point in result.curve] == [0, 2, 3]
    assert same(weights(run.offline_student), before)
    assert not same(weights(run.student), before)
    assert run.student == run.on_policy_student != run.offline_student
    lengths = [step["sample_length"] for step in result.steps]
    assert all(1 <= length <= 12 for length in lengths)
    assert result.sampled_tokens == round(4 * lengths[0] + 4 * lengths[1] + 2 * lengths[2])
    if case == "preference":
        assert result.steps[0]["margin"] == 0.0
        assert result.steps[0]["dpo"] == pytest.approx(0.693147, abs=1e-6)
        assert result.steps[2]["margin"] != 0.0


@pytest.mark.parametrize("case", CASES)
def test_a_judged_divergence_falls_as_the_student_learns(tiny, tmp_path, case):
    run, rows = prepare(tiny, tmp_path, keep="last", epochs=8, **CASES[case])
    steps = train(run, rows).steps
    term = "nll" if case == "preference" else "divergence"
    assert steps[-2][term] < 0.8 * steps[0][term]


def whole_and_killed(roots, die_at):
    """On each rank: phases that nothing disturbs, and others that die and go on. Their results by name."""
    found = {}
    for name, root in roots.items():
        run = RunDirectory.open(root)
        rows = read_slice(run, "distillation")[:10]
        if name.endswith("killed"):
            with pytest.raises(InterruptedError):
                train(run, rows, die_at)
        found[name] = train(run, rows).model_dump()
    return found


def test_two_ranks_that_die_and_go_on_end_bit_for_bit_where_they_would_have(tiny, tmp_path):
    """With shares and micro-batches that differ in number: batches of 4, 4 and 2 rows."""
    roots = {}
    for case, settings in CASES.items():
        for name in ("whole", "killed"):
            run, _ = prepare(tiny, tmp_path / f"{case}-{name}", 2, keep="last", epochs=2, **settings)
            roots[f"{case}-{name}"] = str(run.root)
    [found, _] = on_ranks(2, partial(whole_and_killed, roots, 4), tmp_path / "ranks")
    for case in CASES:
        whole, killed = (RunDirectory.open(roots[f"{case}-{name}"]) for name in ("whole", "killed"))
        assert same(weights(whole.student), weights(killed.student))
        assert not same(weights(whole.student), weights(whole.offline_student))
        assert found[f"{case}-whole"] == found[f"{case}-killed"]


def test_references_are_the_frozen_students_of_the_pairs_that_are_trained_on(tiny, tmp_path):
    """And what is rejected is drawn from that student at every step, not from the one that trains."""
    run, rows = prepare(tiny, tmp_path, keep="last", epochs=2, judge="preference")
    seen = []

    class Watching(AlignmentLoss):
        def __init__(self, pairs, config):
            seen.append(pairs)
            super().__init__(pairs, config)

    with mock.patch.object(loop_module, "AlignmentLoss", Watching):
        train(run, rows)
    frozen = load_scorer(run.offline_student, run.config().student)
    pairs = [pair for batch in seen for pair in batch]
    assert len(pairs) == 20
    sides = ("prompt_ids", "completion_ids", "rejected_ids")
    assert [pair["length"] for pair in pairs] == [sum(len(pair[side]) for side in sides) for pair in pairs]
    assert [pair["completion_ids"] for pair in pairs[:10]] == [row["completion_ids"] for row in rows]
    with torch.no_grad():
        expected = torch.stack(pair_logps(frozen, pairs), dim=1)
    found = torch.tensor([[pair[key] for key in REFERENCE_KEYS] for pair in pairs], dtype=torch.float64)
    assert torch.allclose(found, expected, atol=1e-4)
    again, drawn = worker_of(run, "again", rows), [pair["rejected_ids"] for pair in seen[-1]]
    last = [row for pair in seen[-1] for row in rows if all(row[s] == pair[s] for s in sides[:2])]
    samples = loop_module.sample_rows(again, frozen, last, 12, step=5)
    assert [row["completion_ids"] for row in samples] == drawn


def test_what_the_engine_tells_of_the_very_samples_bounds_what_the_proxy_beside_the_trainer_says(tiny, tmp_path):
    """Of the first step, which both take from the same student on the same samples."""
    first = {}
    for source in ("trainer", "engine"):
        run, rows = prepare(tiny, tmp_path / source, keep="last", source=source)
        first[source] = train(run, rows).steps[0]
    assert first["trainer"]["sample_length"] == first["engine"]["sample_length"]
    assert 0.1 < first["engine"]["divergence"] < first["trainer"]["divergence"]  # models as flat as these tell little


def judged(*nlls):
    """Validation NLLs as given, one a point."""
    scores = [RecordScores([1, 1], [nll] * 2, [0.0, 0.0], ["a", "b"]) for nll in nlls]
    return mock.patch.object(Worker, "validate", side_effect=scores)


def lengths_told(*lengths):
    """Samples' mean lengths as given, one a step."""
    left = list(lengths)

    def told(samples, _):
        return {"sample_length": float(left.pop(0) * len(samples)), "ended_by_length": 0.0, "repeated_4grams": 0.0}

    return mock.patch.object(loop_module, "watched", told)


@pytest.mark.parametrize(
    ("nlls", "keep", "kept"), [([2, 3, 4], "best", 0), ([4, 2, 3], "best", 2), ([2, 3, 4], "last", 3)]
)
def test_by_validation_the_offline_student_stays_where_nothing_is_better(tiny, tmp_path, nlls, keep, kept):
    run, rows = prepare(tiny, tmp_path, keep=keep)
    with judged(*nlls):
        result = train(run, rows)
    assert (result.kept, len(result.steps)) == (kept, 3)
    assert same(weights(run.student), weights(run.offline_student)) == (kept == 0)
    assert result.kept_point.held_out_nll == nlls[[0, 2, 3].index(kept)]


def test_the_offline_student_stays_after_a_death_too(tiny, tmp_path):
    run, rows = prepare(tiny, tmp_path, student=LORA)
    with judged(2, 3, 4, 2):
        with pytest.raises(InterruptedError):
            train(run, rows, die_at=2)
        result = train(run, rows)
    assert result.kept == 0
    assert same(weights(run.student), weights(run.offline_student))


def step(length, repeated=0.0, records=4):
    metrics = {"sample_length": records * length, "ended_by_length": 0.0, "repeated_4grams": records * repeated}
    return Step({}, metrics, 1.0, records=records)


def test_what_is_watched_of_samples():
    samples = [[5, 6, 7, 8, 2], [5, 6, 5, 6, 5, 6, 5], [9, 2], [7]]
    assert repeated_4grams(samples[0]) == repeated_4grams([9, 2]) == 0.0
    assert repeated_4grams(samples[1]) == 0.5  # 5656 6565 5656 6565
    assert repeated_4grams([3] * 103) == pytest.approx(0.99)
    assert watched(samples, [2]) == {"sample_length": 15.0, "ended_by_length": 2.0, "repeated_4grams": 0.5}


def test_a_drift_needs_two_windows_and_passes_its_bound():
    config = OnPolicyConfig(drift_window=2, max_length_ratio=2.0, max_repetition_rise=0.1)
    assert drift([step(10), step(10), step(90)], config) is None
    assert drift([step(10), step(10), step(15), step(25)], config) is None
    assert drift([step(10), step(10), step(15), step(26)], config) == (
        "samples have 20.5 tokens over steps 3 to 4, against 10.0 over the first 2: beyond on_policy.max_length_ratio 2"
    )
    assert "have 4.5 tokens" in drift([step(10), step(10), step(5), step(4)], config)
    assert drift([step(10, 0.5), step(10, 0.5), step(10, 0.6), step(10, 0.6)], config) is None
    assert "65.0% of the samples' 4-grams are repeated over steps 4 to 5, against 50.0%" in drift(
        [step(10, 0.5), step(10, 0.5), step(10), step(10, 0.7), step(10, 0.6)], config
    )


@pytest.mark.parametrize("die_at", [None, 3])
@pytest.mark.parametrize("keep", ["last", "best"])
def test_drift_ends_the_phase_where_it_is_seen(tiny, tmp_path, keep, die_at):
    """The fourth step is beyond twice the first, with one step a window; no point of the curve was due there."""
    run, rows = prepare(tiny, tmp_path, keep=keep, epochs=4, evaluations=1, drift_window=1)
    with lengths_told(10, 10, 10, 25), judged(2, 3, 2):
        if die_at is not None:
            with pytest.raises(InterruptedError):
                train(run, rows, die_at)
        result = train(run, rows)
    assert len(result.steps) == 4
    assert [point.step for point in result.curve] == [0, 4]
    assert result.kept == {"last": 4, "best": 0}[keep]
    assert result.drift.startswith("samples have 25.0 tokens over steps 4 to 4, against 10.0 over the first 1")
    assert same(weights(run.student), weights(run.offline_student)) == (keep == "best")


def test_a_phase_that_has_drifted_is_not_gone_on_with(tiny, tmp_path):
    """It dies as its student is to be saved, after the last checkpoint."""
    run, rows = prepare(tiny, tmp_path, keep="last", epochs=4, drift_window=1)
    died = mock.patch.object(loop_module, "save_student", side_effect=InterruptedError)
    with lengths_told(10, 21), died, pytest.raises(InterruptedError):
        train(run, rows)
    with mock.patch.object(Trainer, "step", side_effect=AssertionError):
        result = train(run, rows)
    assert result.drift is not None
    assert len(result.steps) == 2


WHOLE = {"global_batch": 8, "learning_rate": 2e-3, "max_new_tokens": 8, "evaluations": 1}


@pytest.fixture(scope="module")
def donor(streams, tiny, tmp_path_factory):
    """A finished run without the phase."""
    run = inline_run.make_run(tiny, tmp_path_factory.mktemp("donor"))
    Pipeline(inline_run.context_of(run, inline_run.Trainers())).execute()
    return run


def test_a_run_with_the_phase_takes_the_student_over_and_goes_on_with_it(donor, streams, tiny, tmp_path):
    corpus = donor.config().corpus.model_dump()
    run = inline_run.make_run(tiny, tmp_path, corpus=corpus, on_policy={**WHOLE, "keep": "last"})
    with_phase, without = stage_keys(run.config()), stage_keys(donor.config())
    assert {name for name in with_phase if with_phase[name] != without.get(name)} == {"on_policy", "evaluate"}
    lent = ["corpus", "warmup", "align-01", "align-02", "score", "distil"]
    before, after = inline_run.Trainers(fail_at="on_policy"), inline_run.Trainers()
    with pytest.raises(OSError, match="dies in on_policy"):
        Pipeline(inline_run.context_of(run, before, inline_run.Lender(donor, lent))).execute()
    Pipeline(inline_run.context_of(run, after, inline_run.Lender(donor, lent))).execute()
    assert (before.asked, after.asked) == (["on_policy"], ["on_policy", "evaluate"])
    assert same(weights(run.offline_student), weights(donor.student))
    assert not same(weights(run.student), weights(donor.student))
    theirs, ours = EVALUATE.finished(donor).result.models, EVALUATE.finished(run).result.models
    assert ours["student_offline"] == theirs["student_after"]
    assert ours["student_before"] == theirs["student_before"]
    assert ours["student_after"] != theirs["student_after"]
    report, page = build_report(run, "told"), overview(run)
    for student in (report.student, page.student):
        assert student.offline == ours["student_offline"].fidelity
        assert student.after == ours["student_after"].fidelity
        assert student.curve == DISTIL.finished(donor).result.curve
        assert student.on_policy.kept == ON_POLICY.finished(run).result.kept == 3
    assert build_report(donor, "told").student.on_policy is None
    assert page.steps["on_policy"].keys() >= {"divergence", "sample_length", "repeated_4grams", "ended_by_length"}
    done = next(stage for stage in report.stages if stage.stage == "on_policy")
    assert done.tokens == ON_POLICY.finished(run).result.sampled_tokens > done.records > 0


def test_preference_needs_no_proxy_and_its_samples_do_not_drift(streams, tiny, tmp_path):
    phase = {**WHOLE, "judge": "preference", "keep": "last", "drift_window": 1}
    run = inline_run.make_run(tiny, tmp_path, on_policy=phase, distillation={"source": "none", "global_batch": 8})
    trainers = inline_run.Trainers()
    with lengths_told(10, 4, 4, 4):
        Pipeline(inline_run.context_of(run, trainers)).execute()
    assert trainers.asked == ["distil", "on_policy", "evaluate"]
    result = ON_POLICY.finished(run).result
    assert len(result.steps) > 2
    assert result.drift is None


def test_a_run_whose_engine_judges_keeps_it_while_it_trains(donor, streams, tiny, tmp_path):
    corpus = donor.config().corpus.model_dump()
    run = inline_run.make_run(tiny, tmp_path, corpus=corpus, on_policy={**WHOLE, "source": "engine", "keep": "last"})
    lent = ["corpus", "warmup", "align-01", "align-02", "score", "distil"]
    engines, released = [], []

    @contextmanager
    def engine(_, adapter):
        engines.append((adapter, LocalEngine(run, adapter)))
        yield engines[-1][1]

    trainers = inline_run.Trainers()
    context = inline_run.context_of(run, trainers, inline_run.Lender(donor, lent))
    context.facilities.engines.release = lambda spec: released.append(list(trainers.asked))
    with mock.patch.object(Context, "proxy_engine", engine):
        Pipeline(context).execute()
    [(adapter, asked)] = engines
    assert adapter == adapters_in_force(run)[-1]["adapter"]
    result = ON_POLICY.finished(run).result
    assert sum(len(ids) for batch in asked.asked for ids in batch) == result.sampled_tokens
    assert len(asked.asked) == len(result.steps)
    assert [] not in released  # not before the phase has trained
    assert ["on_policy"] in released


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"on_policy": {"source": "engine", "judge": "preference"}}, "preference asks no proxy"),
        (
            {"on_policy": {"source": "engine"}, "resources": {"engine_while_training": "stop"}},
            r"set resources\.engine_while_training=keep",
        ),
        (
            {
                "on_policy": {"source": "engine"},
                "resources": {"device": "gpu", "engine_while_training": "sleep"},
            },
            r"engine_while_training is sleep; set resources\.engine_while_training=keep",
        ),
    ],
)
def test_an_engine_that_cannot_judge_is_refused(tiny, tmp_path, sections, message):
    with pytest.raises(ConfigError, match=message):
        run_config(str(tiny), str(tmp_path), **sections)


def test_a_drift_is_told(streams, tiny, tmp_path):
    phase = {**WHOLE, "judge": "proxy", "keep": "last", "drift_window": 1}
    run = inline_run.make_run(tiny, tmp_path, on_policy=phase)
    with lengths_told(10, 4):
        Pipeline(inline_run.context_of(run, inline_run.Trainers())).execute()
    result = ON_POLICY.finished(run).result
    assert len(result.steps) == 2
    *_, warning = (one.event.message for one in read_events(run.events)[0] if one.event.name == "warning")
    assert warning == f"the on-policy phase ended after 2 steps: {result.drift}"
    assert "student_offline" in EVALUATE.finished(run).result.models
