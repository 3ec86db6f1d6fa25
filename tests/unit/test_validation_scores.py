"""What a round changed, record by record: against loops, through files, taken over by another run."""

from __future__ import annotations

import math
import random

import pytest

from proxykd.config import AlignmentConfig
from proxykd.errors import IntegrityError, RunError
from proxykd.evaluation.fidelity import RecordScores
from proxykd.evaluation.promotion import NllChange, decide, stop_reason
from proxykd.evaluation.standard_errors import ratio_of_sums
from proxykd.evaluation.validation_scores import validation_change, write_validation
from proxykd.runs.run_directory import RunDirectory
from proxykd.stages.align import ALIGN
from proxykd.stages.warmup import WARMUP
from proxykd.study.adoption import adopt_stage
from tests.small_run import run_config
from tests.stage_results import aligned, finish, warmed_up


@pytest.fixture
def run(tmp_path):
    return RunDirectory.create(run_config("none", str(tmp_path / "runs")))


def judged(seed, shift, noise):
    """Before and after of 40 records of 20 prompts: levels far apart, a change that is nearly the same in all."""
    chance = random.Random(seed)
    tokens = [chance.randint(5, 60) for _ in range(40)]
    prompts = [f"p{i // 2}" for i in range(40)]
    before = [count * chance.gauss(2.0, 0.8) for count in tokens]
    drift = [chance.gauss(shift, noise) for _ in range(20)]
    after = [nll + count * drift[i // 2] for i, (nll, count) in enumerate(zip(before, tokens, strict=True))]
    agreements = [0.0] * 40
    return RecordScores(tokens, before, agreements, prompts), RecordScores(tokens, after, agreements, prompts)


def test_the_change_is_paired_and_its_error_clusters_by_prompt(run):
    before, after = judged(1, 0.06, 0.01)
    write_validation(run, "warmup-1", before)
    write_validation(run, "r01-1", after)
    change = validation_change(run, "warmup-1", "r01-1")
    total = sum(before.tokens)
    nll = sum(after.nll) / total - sum(before.nll) / total
    meat = 0.0
    for prompt in range(20):
        residual = 0.0
        for i in (2 * prompt, 2 * prompt + 1):
            residual += after.nll[i] - before.nll[i] - nll * before.tokens[i]
        meat += residual**2
    assert change.nll == pytest.approx(nll, rel=1e-9)
    assert change.stderr == pytest.approx(math.sqrt(20 / 19 * meat) / total, rel=1e-9)
    assert change.prompts == 20
    assert (change.before, change.after) == (
        pytest.approx(sum(before.nll) / total),
        pytest.approx(sum(after.nll) / total),
    )
    # The unpaired error of either is that of the texts, 40 times as large: it would hide the rise.
    either = ratio_of_sums(after.nll, after.tokens, after.prompts)[1]
    assert either > 20 * change.stderr
    assert decide(change).verdict == "reject"


def test_the_error_is_the_spread_between_validation_slices():
    changes, errors = [], []
    for seed in range(300):
        before, after = judged(seed, 0.0, 0.05)
        differences = [b - a for a, b in zip(before.nll, after.nll, strict=True)]
        change, error = ratio_of_sums(differences, before.tokens, before.prompts)
        changes.append(change)
        errors.append(error)
    mean = sum(changes) / 300
    spread = math.sqrt(sum((change - mean) ** 2 for change in changes) / 299)
    assert sum(errors) / 300 == pytest.approx(spread, rel=0.1)


def shares(shift, slices=400):
    """Of validation slices of 40 records whose true rise is `shift`: the share rejected, and of idle rounds."""
    config = AlignmentConfig(min_improvement=0.005, rounds=9, patience=1)
    rejected = idle = 0
    for seed in range(slices):
        before, after = judged(seed, shift, 0.05)
        total = sum(before.tokens)
        differences = [b - a for a, b in zip(before.nll, after.nll, strict=True)]
        _, stderr = ratio_of_sums(differences, before.tokens, before.prompts)
        change = NllChange(sum(before.nll) / total, sum(after.nll) / total, stderr, 20)
        rejected += decide(change).verdict == "reject"
        idle += stop_reason([change], config) is not None
    return rejected / slices, idle / slices


def test_noise_rejects_and_converges_one_time_in_twenty_at_most():
    """At the thresholds themselves, where the bare change would reject, or converge, every other time."""
    rejected, _ = shares(0.0)
    assert 0.02 < rejected < 0.09
    _, idle = shares(-0.005)
    assert 0.02 < idle < 0.09
    surely, _ = shares(0.05)
    assert surely > 0.9


def test_what_is_not_there_or_not_of_the_same_records_is_refused(run):
    before, after = judged(1, 0.0, 0.01)
    write_validation(run, "warmup-1", before)
    with pytest.raises(RunError, match=r"validation/r01-1/records.parquet is not there.*begin the run anew"):
        validation_change(run, "warmup-1", "r01-1")
    write_validation(
        run, "r01-1", RecordScores(after.tokens[1:], after.nll[1:], after.agreements[1:], after.prompts[1:])
    )
    with pytest.raises(RunError, match="warmup-1 and r01-1 were not judged by the same validation records"):
        validation_change(run, "warmup-1", "r01-1")
    (run.validation("warmup-1") / "records.parquet").write_bytes(b"torn")
    with pytest.raises(IntegrityError, match="its marker says"):
        validation_change(run, "warmup-1", "r01-1")


def test_a_run_that_takes_a_round_over_can_judge_the_next(run, tmp_path):
    taker = RunDirectory.create(run_config("none", str(tmp_path / "taker")))
    before, after = judged(1, -0.1, 0.01)
    write_validation(run, "warmup-1", before)
    finish(run, WARMUP, warmed_up("warmup-1"))
    adopt_stage(taker, run, WARMUP, None)
    write_validation(run, "r01-1", after)
    finish(run, ALIGN, aligned(1, "r01-1"), 1)
    adopt_stage(taker, run, ALIGN, 1)
    assert validation_change(taker, "warmup-1", "r01-1") == validation_change(run, "warmup-1", "r01-1")
