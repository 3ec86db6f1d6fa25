"""A student by SFT beside the run's own: on all of the training text, and compared with it record by record."""

from __future__ import annotations

import math
import re
from collections import defaultdict

import pytest

from actors.run.pipeline import Pipeline
from proxykd.data.corpus_store import read_slice
from proxykd.errors import ConfigError
from proxykd.report.overview import overview
from proxykd.report.run_report import build_report
from proxykd.stages.evaluate import EVALUATE, STUDENT_AFTER, STUDENT_SFT
from proxykd.stages.results import Results
from proxykd.stages.sft import SFT
from proxykd.stages.table import stage_keys
from services.cli.report_tables import print_run
from tests.inline_run import Trainers, context_of, make_run
from tests.small_run import run_config

SETTINGS = {"learning_rate": 2e-3, "global_batch": 8, "epochs": 2, "evaluations": 2}


@pytest.fixture(scope="module")
def finished(streams, tiny, tmp_path_factory):
    sealed = {"model": "tiny-sealed", "local": {"source": str(tiny), "dtype": "float32"}}
    run, trainers = make_run(tiny, tmp_path_factory.mktemp("sft"), sft=SETTINGS, teacher=sealed), Trainers()
    Pipeline(context_of(run, trainers)).execute()
    return run, [row["id"] for row in trainers.streamed["sft"]]


def test_it_learns_from_all_of_the_training_text_and_from_nothing_held_out(finished):
    run, seen = finished
    slices = {name: {row["id"] for row in read_slice(run, name)} for name in run.config().corpus.slices}
    assert len(seen) == len(set(seen))
    assert set(seen) == slices["warmup"] | slices["alignment"] | slices["distillation"]
    result = Results.read(run).need(SFT)
    assert result.records == 2 * len(seen)
    assert [point.step for point in result.curve] == [0, len(result.steps) // 2, len(result.steps)]


def test_both_students_are_compared_record_by_record(finished):
    run, _ = finished
    evaluated, rows = Results.read(run).need(EVALUATE), read_slice(run, "test")
    mine, sft = evaluated.models[STUDENT_AFTER], evaluated.models[STUDENT_SFT]
    tokens, prompts = sum(mine.tokens), {row["prompt_key"] for row in rows}
    found = evaluated.student_less_sft
    assert found.nll == pytest.approx(mine.fidelity.held_out_nll - sft.fidelity.held_out_nll, abs=1e-9)
    assert found.true_kl == pytest.approx(mine.true_kl.kl - sft.true_kl.kl, abs=1e-9)
    assert found.prompts == len(prompts)
    residuals = defaultdict(float)
    for row, n, a, b in zip(rows, mine.tokens, mine.sequence_logps, sft.sequence_logps, strict=True):
        residuals[row["prompt_key"]] += (b - a) - found.nll * n
    spread = sum(value**2 for value in residuals.values()) * len(prompts) / (len(prompts) - 1)
    assert found.nll_stderr == pytest.approx(math.sqrt(spread) / tokens)


def test_report_page_and_terminal_show_it(finished, capsys):
    run, _ = finished
    report, page = build_report(run, "all 2 rounds done"), overview(run)
    assert report.sft == page.student.sft
    assert report.sft.after.held_out_nll != report.student.after.held_out_nll
    print_run(run)
    told = capsys.readouterr().out
    less = report.sft.student_less_sft
    assert re.search(rf"student, SFT +test +{report.sft.after.held_out_nll:.4f}", told)
    signed = f"{less.nll:+.4f}".replace("-", "−")
    assert re.search(rf"less SFT, paired +test +{re.escape(signed)}", told)
    assert told.startswith("The student's true KL from the teacher ")


def test_another_run_may_take_it_over_whatever_teaches_its_own_student(tiny, tmp_path):
    def key(**sections):
        return stage_keys(run_config(str(tiny), str(tmp_path), sft=SETTINGS, **sections))["sft"]

    assert key() == key(distillation={"alpha": 5.0}) == key(warmup={"epochs": 3})
    assert key() != key(student={"source": str(tiny), "drop_layers": [2], "dtype": "float32", "method": "full"})


def test_a_student_that_is_sft_already_has_none_beside_it(tiny, tmp_path):
    with pytest.raises(ConfigError, match=r"distillation\.source none is SFT already; leave sft out"):
        run_config(str(tiny), str(tmp_path), sft=SETTINGS, distillation={"source": "none"})
