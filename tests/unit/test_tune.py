"""configs/tune.py: every arm tries its grid, and the student's validation NLL, as its last stage left it, ranks them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import yaml

from proxykd.report.run_report import write_report
from proxykd.runs.storage import write_json
from proxykd.study.studies import StudyDirectory, load_study
from proxykd.study.study_report import build_study_report
from tests.told_run import tell

spec = importlib.util.spec_from_file_location("tune", Path("configs/tune.py"))
tune = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tune)


@pytest.fixture
def grids(tmp_path, monkeypatch):
    study = {"name": "small", "arms": ["proxy_kd", "sft_on_all"], "seeds": [1, 2]}
    study["settings"] = {"sft_on_all": {"distillation.alpha": 3.0}}
    study["run"] = {"corpus": {"path": "c"}, "proxy": {"source": "p"}, "student": {"source": "s"}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    grid = {"distillation.learning_rate": [1e-4, 1e-3], "distillation.epochs": [1, 2]}
    raw = {"study": "study.yaml", "seeds": [0], "set": ["run.corpus.path=other"]}
    raw["grids"] = {"sft_on_all": grid, "proxy_kd": {"warmup.epochs": [3]}}
    (tmp_path / "grids.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "grids.yaml"


def test_every_setting_of_a_grid_is_an_arm_beside_what_the_study_has_for_it(grids, capsys):
    tune.write(grids)
    assert capsys.readouterr().out == "5 arms in runs/grids.yaml\n"
    found = {arm.name: arm.config for arm in load_study("runs/grids.yaml").expand()}
    assert [(one.seed, one.corpus.path) for one in found.values()] == [(0, "other")] * 5
    students = [found[f"sft_on_all-{i}"] for i in (1, 2, 3, 4)]
    tried = [(one.distillation.learning_rate, one.distillation.epochs) for one in students]
    assert tried == [(1e-4, 1), (1e-4, 2), (1e-3, 1), (1e-3, 2)]
    assert {(one.corpus.whole_text, one.distillation.source, one.distillation.alpha) for one in students} == {
        (True, "none", 3.0)
    }
    assert found["proxy_kd-1"].warmup.epochs == 3


def test_they_are_ranked_by_the_mean_over_seeds(grids, capsys, monkeypatch):
    tune.write(grids)
    directory = StudyDirectory.create(load_study("runs/grids.yaml"))
    for run in directory.runs():
        write_report(tell(run), "all rounds done")
    report = build_study_report(directory).model_dump()
    for number, arm in enumerate(report["arms"]):
        arm["validation"]["held_out_nll"] = 3.0 - number / 10
    write_json(directory.report, report)
    capsys.readouterr()
    tune.read(str(directory.root))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["2.7000", "2.8000", "2.9000", "3.0000", "2.6000"]
    assert lines[0] == "2.7000  sft_on_all: distillation.learning_rate 0.001, distillation.epochs 2"
