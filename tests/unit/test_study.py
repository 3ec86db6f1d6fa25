"""Studies: which arms there are, what they share, what is taken over, what the table says."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from pydantic import BaseModel

from proxykd.config import validate_config
from proxykd.config.whole import WITHOUT_EFFECT
from proxykd.errors import ConfigError
from proxykd.report.run_report import write_report
from proxykd.runs.json_model import read_model
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import read_json, write_json, write_shard
from proxykd.stages.align import ALIGN
from proxykd.stages.table import stage_keys
from proxykd.study.adoption import adopt_stage, link_tree
from proxykd.study.comparison import mean_and_interval
from proxykd.study.presets import PRESETS
from proxykd.study.studies import StudyDirectory, load_study, validate_study
from proxykd.study.study_model import ArmReport, StudyReport
from proxykd.study.study_page import write_study_report
from proxykd.study.study_report import table
from services.cli.main import main
from tests.small_run import run_config
from tests.stage_results import aligned, fidelity, finish
from tests.told_run import tell

OPEN = {"teacher": {"source": "open"}, "max_new_tokens": 12}
RUN = {"corpus": {"path": "c.jsonl"}, "proxy": {"source": "p"}, "student": {"source": "s"}, "white_box": OPEN}


def study(tmp_path, **sections):
    raw = {"name": "t", "seeds": [1, 2], "arms": list(PRESETS), "run": {**RUN, "runs_dir": str(tmp_path / "runs")}}
    return validate_study(raw | sections, "test")


def keys(tmp_path, **sections):
    return {arm.name: stage_keys(arm.config) for arm in study(tmp_path, **sections).expand() if arm.seed == 1}


def test_every_preset_is_a_run_with_every_seed(tmp_path):
    arms = study(tmp_path).expand()
    assert len(arms) == 2 * len(PRESETS)
    assert len({arm.config.run_id for arm in arms}) == len(arms)
    by_name = {arm.name: arm.config for arm in arms if arm.seed == 2}
    assert by_name["jsd"].distillation.source == "white_box"
    assert by_name["jsd"].white_box.divergence == "jsd"
    assert by_name["delta_kl"].teaching.shift
    assert by_name["without_preference"].alignment.preference is False
    assert {name for name, config in by_name.items() if config.corpus.whole_text} == {
        "sft_on_all", "whole_text", "whole_text_nll", "delta_kl", "soda", "whole_text_on_policy",
    }  # fmt: skip
    assert by_name["sft_on_all"].distillation.source == "none"
    assert by_name["whole_text_nll"].alignment.preference is False
    assert {arm.config.seed for arm in arms} == {1, 2}


def test_arms_share_exactly_what_does_not_depend_on_their_difference(tmp_path):
    of = keys(tmp_path, settings={"delta_kl": {"corpus.whole_text": False}})
    full = of["proxy_kd"]
    assert of["delta_kl"]["score"] == full["score"]
    assert of["delta_kl"]["distil"] != full["distil"]
    for stage in ("corpus", "warmup", "align", "score"):
        assert of["without_trust"][stage] == full[stage]
    assert of["without_trust"]["distil"] != full["distil"]
    assert of["without_preference"]["warmup"] == full["warmup"]
    assert of["without_preference"]["align"] != full["align"]
    assert of["without_preference"]["score"] != full["score"]
    assert of["without_alignment"]["score"] != full["score"]
    assert of["trust_by_token"]["score"] != full["score"]  # mu and gamma are of another score
    assert of["kl_by_sequence"]["distil"] == full["distil"]  # the default: the same run by another name
    assert of["without_proxy"]["distil"] == of["black_box_kd"]["distil"]
    assert len({of[name]["complete"] for name in ("forward_kl", "jsd", "takd", "reverse_kl_on_policy")}) == 1
    assert of["takd"]["assist"]
    assert of["sft_on_all"]["corpus"] == of["whole_text"]["corpus"] != full["corpus"]
    assert of["sft_on_all"]["distil"] != of["black_box_kd"]["distil"]
    assert of["whole_text_nll"]["warmup"] == of["whole_text"]["warmup"]
    assert of["whole_text_nll"]["align"] != of["whole_text"]["align"]
    assert of["soda"]["distil"] == of["sft_on_all"]["distil"]
    assert of["whole_text_on_policy"]["distil"] == of["whole_text"]["distil"]
    assert len({of[name]["distil"] for name in of}) == len(of) - 5  # and by sequence twice, without proxy


def test_seeds_share_the_teachers_text_alone(tmp_path):
    asked = {"corpus": {"prompts": "p.jsonl"}, "teacher": {"base_url": "http://localhost/v1"}}
    made = study(tmp_path, arms=["proxy_kd"], run={**RUN, **asked, "runs_dir": str(tmp_path)})
    one, two = (stage_keys(arm.config) for arm in made.expand())
    assert {stage for stage in one if one[stage] == two[stage]} == {"collect"}


def test_resources_change_no_key(tmp_path):
    arm = study(tmp_path, arms=["proxy_kd"]).expand()[0]
    more = arm.config.model_copy(update={"resources": arm.config.resources.model_copy(update={"trainer_workers": 4})})
    assert stage_keys(more) == stage_keys(arm.config)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"arms": ["proxy_kd", "magic"]}, "unknown arm(s) magic"),
        ({"arms": []}, "arms"),
        ({"seeds": [1, 1]}, "named once"),
        ({"run": {**RUN, "seed": 3}}, "run.seed is the study's to set"),
        ({"own_arms": {"jsd": {"title": "x", "set": {"a.b": 1}}}}, "are presets"),
        ({"run": {k: v for k, v in RUN.items() if k != "white_box"}}, "arm forward_kl of study t"),
        ({"settings": {"jsd": {"distillation.alhpa": 1}}}, "distillation.alhpa"),
        ({"arms": ["proxy_kd"], "settings": {"proxy_kd": {"on_policy.source": "engine"}}}, "share one in turns"),
        ({"reference": "sft"}, "reference is sft, which is not among arms"),
        ({"sizes": {"records": [8, 0], "arms": ["jsd"]}}, "records has 0; a size is at least 1"),
        ({"sizes": {"records": [8, 8], "arms": ["jsd"]}}, "records 8, 8 must each be named once"),
        ({"sizes": {"records": [8], "arms": ["jsd", "jsd"]}}, "arms jsd, jsd must each be named once"),
        ({"sizes": {"records": [], "arms": ["jsd"]}}, "sizes.records"),
        ({"sizes": {"records": [8], "arms": ["magic"]}}, "unknown arm(s) magic"),
        ({"arms": ["jsd"], "sizes": {"records": [8], "arms": ["takd"]}}, "sizes.arms has takd, which arms has not"),
        (
            {"run": {**RUN, "corpus": {"path": "c", "training_limit": 8}}, "sizes": {"records": [8], "arms": ["jsd"]}},
            "sizes.records has 8, but corpus.training_limit leaves jsd 8 records",
        ),
    ],
)
def test_a_study_that_cannot_run_is_refused(tmp_path, sections, message):
    with pytest.raises(ConfigError) as told:
        study(tmp_path, **sections)
    assert message in str(told.value)


def test_own_arms_and_settings_are_overrides(tmp_path):
    own = {"small_proxy": {"title": "a smaller proxy", "set": {"proxy.drop_layers": [1, 2]}}}
    settings = {"small_proxy": {"warmup.learning_rate": 0.5}}
    made = study(tmp_path, arms=["small_proxy"], own_arms=own, settings=settings)
    config = made.expand()[0].config
    assert (config.proxy.drop_layers, config.warmup.learning_rate) == ((1, 2), 0.5)
    assert made.title("small_proxy") == "a smaller proxy"
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump(json.loads(made.model_dump_json())))
    assert load_study(path) == made
    assert load_study(path, ("seeds=[7]",)).seeds == (7,)


def test_sized_arms_run_with_fewer_records_as_well(tmp_path):
    sizes = {"records": [8, 32], "arms": ["whole_text", "sft_on_all"]}
    made = study(tmp_path, arms=["sft_on_all", "whole_text", "jsd"], sizes=sizes, reference="sft_on_all")
    arms = made.expand()
    assert [(arm.name, arm.seed) for arm in arms if arm.size is None] == [
        (name, seed) for name in made.arms for seed in (1, 2)
    ]
    assert {(arm.name, arm.size) for arm in arms[6:]} == {(name, size) for name in sizes["arms"] for size in (8, 32)}
    assert len({arm.config.run_id for arm in arms}) == len(arms) == 14
    assert {arm.config.corpus.training_limit == arm.size for arm in arms} == {True}
    assert "sft-on-all-s2-n32" in {arm.config.name for arm in arms}
    by_run = {(arm.name, arm.seed, arm.size): stage_keys(arm.config) for arm in arms}
    assert by_run["sft_on_all", 1, 8]["corpus"] == by_run["whole_text", 1, 8]["corpus"]
    assert len({by_run["whole_text", 1, size]["warmup"] for size in (8, 32, None)}) == 3
    assert made.id != study(tmp_path, arms=list(made.arms), reference="sft_on_all").id
    directory = StudyDirectory.create(made)
    assert [(arm.name, arm.seed, arm.size) for arm in directory.arms()] == list(by_run)


def test_the_teacher_is_asked_once_for_all_sizes(tmp_path):
    asked = {"corpus": {"prompts": "p.jsonl"}, "teacher": {"base_url": "http://localhost/v1"}}
    run = {**RUN, **asked, "runs_dir": str(tmp_path)}
    made = study(tmp_path, arms=["whole_text"], run=run, sizes={"records": [8, 32], "arms": ["whole_text"]})
    assert len({stage_keys(arm.config)["collect"] for arm in made.expand()}) == 1


def test_arms_are_compared_with_proxy_kd_unless_another_is_named(tmp_path):
    assert study(tmp_path, arms=["jsd", "proxy_kd"]).reference == "proxy_kd"
    assert study(tmp_path, arms=["jsd", "proxy_kd"], reference="jsd").reference == "jsd"
    assert study(tmp_path, arms=["jsd"]).reference is None


def test_each_seed_may_have_a_world_of_its_own(tmp_path):
    """Its prompts, its teacher, its student; other braces stay as they are."""
    teacher = {"local": {"source": "t-{seed}"}, "system": 'Answer as {"seed": {seed}}.'}
    run = {**RUN, "corpus": {"prompts": "p/{seed}-{seed}.jsonl"}, "teacher": teacher, "runs_dir": str(tmp_path)}
    own = {"other": {"title": "o", "set": {"student.source": "s-{seed}", "student.drop_layers": [1]}}}
    made = study(tmp_path, arms=["proxy_kd", "other"], seeds=[3, 14], run=run, own_arms=own)
    by_seed = {arm.seed: arm.config for arm in made.expand() if arm.name == "other"}
    for seed, config in by_seed.items():
        assert config.corpus.prompts == f"p/{seed}-{seed}.jsonl"
        assert config.teacher.local.source == f"t-{seed}"
        assert config.teacher.system == f'Answer as {{"seed": {seed}}}.'
        assert (config.student.source, config.student.drop_layers) == (f"s-{seed}", (1,))
    assert len({stage_keys(config)["collect"] for config in by_seed.values()}) == 2
    assert made.run["corpus"]["prompts"] == "p/{seed}-{seed}.jsonl"


def test_a_study_keeps_its_runs_in_its_folder(tmp_path):
    directory = StudyDirectory.create(study(tmp_path, arms=["proxy_kd", "jsd"]))
    assert StudyDirectory.is_one(directory.root)
    assert [run.id for run in directory.runs()] == sorted(
        (path.name for path in (directory.root / "runs").iterdir()), key=lambda name: ("jsd" in name, name)
    )
    assert all(run.root.parent == directory.root / "runs" for run in directory.runs())


def finished(run, stage, result, **facts):
    key = stage if "round" not in result else f"{stage}-{result['round']:02d}"
    write_json(run.stages / f"{key}.json", {"stage": stage, "seconds": 3.0, "result": result, **facts})


def test_a_finished_stage_is_taken_over_with_its_files_as_links(store, tmp_path):
    donor = RunDirectory.create(run_config("m", str(store), name="donor"))
    run = RunDirectory.create(run_config("m", str(store), name="taker"))
    write_shard(donor.pairs(1) / "shard-00000.parquet", lambda path: path.write_bytes(b"pairs"), {"records": 1})
    judged = donor.validation("r01-abc") / "records.parquet"
    write_shard(judged, lambda path: path.write_bytes(b"judged"), {"records": 1})
    adapter = donor.adapters / "r01-abc"
    for name in ("adapter_model.safetensors", "manifest.json", "READY"):
        path = adapter / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    finish(donor, ALIGN, aligned(1, "r01-abc"), 1)
    for _ in range(2):  # again after a death in the middle
        assert adopt_stage(run, donor, ALIGN, 1) == aligned(1, "r01-abc")
    assert (run.pairs(1) / "shard-00000.parquet").read_bytes() == b"pairs"
    assert (run.pairs(1) / "shard-00000.ok").exists()
    assert (run.adapters / "r01-abc" / "READY").exists()
    assert (run.validation("r01-abc") / "records.parquet").read_bytes() == b"judged"
    assert read_json(run.stages / "align-01.json")["adopted_from"] == donor.id
    if "s3" not in str(store):
        theirs = (donor.pairs(1) / "shard-00000.parquet").stat()
        assert (run.pairs(1) / "shard-00000.parquet").stat().st_ino == theirs.st_ino


def arm(name, seed, nll):
    lacking = dict.fromkeys(("proxy", "source", "sealed_teacher", "trust", "calibration", "mass"))
    empty = {"curve": [], "alignment": [], "parameters": {}, "rounds": [], "benchmarks": {}, "stages": []}
    hours = {"device_hours": 0.5 * seed, "own_device_hours": 0.0}
    facts = {"name": name, "seed": seed, "size": None, "records": 100, "run": f"{name}-s{seed}"}
    students = {"student": fidelity(nll), "student_before": fidelity(4.0), "validation": fidelity(nll)}
    return ArmReport(**facts, **students, **lacking, **empty, **hours)


def test_the_table_has_means_intervals_and_paired_differences(tmp_path):
    made = study(tmp_path, arms=["proxy_kd", "black_box_kd"], seeds=[1, 2, 3])
    arms = [arm("proxy_kd", s, v) for s, v in ((1, 2.0), (2, 2.2), (3, 2.4))]
    arms += [arm("black_box_kd", s, v) for s, v in ((1, 2.1), (2, 2.4), (3, 2.4))]
    full, other = table(made, arms)
    assert full["held_out_nll"] == pytest.approx(2.2)
    assert full["held_out_nll_ci"] == pytest.approx(4.3027 * 0.2 / math.sqrt(3), rel=1e-4)
    assert "held_out_nll_difference" not in full
    assert other["held_out_nll_difference"] == pytest.approx(0.1)
    assert other["held_out_nll_difference_ci"] == pytest.approx(4.3027 * 0.1 / math.sqrt(3), rel=1e-4)
    assert full["true_kl"] is None
    assert full["device_hours"] == pytest.approx(1.0)  # 0.5, 1.0 and 1.5
    against = made.model_copy(update={"reference": "black_box_kd"})
    full, other = table(against, arms)
    assert full["held_out_nll_difference"] == pytest.approx(-0.1)
    assert "held_out_nll_difference" not in other
    assert "held_out_nll_difference" not in str(table(made.model_copy(update={"reference": None}), arms))
    assert mean_and_interval([]) == (None, None)
    assert mean_and_interval([1.5]) == (1.5, None)


def test_the_shipped_studies_are_valid_and_described():
    shipped = sorted((Path(__file__).parents[2] / "configs").glob("study-*.yaml"))
    assert shipped
    for path in shipped:
        told = CliRunner().invoke(main, ["config", "check", str(path)])
        # Its text is the user's, or made by a script: where it is not here, that is said last.
        assert told.exit_code == 0 or re.fullmatch(r"proxykd: corpus\.\w+ .* does not exist; .*", told.stderr.strip())
        study = load_study(path)
        assert f"{len(study.arms)} arms by {len(study.seeds)} seeds" in told.output


def test_the_report_of_a_study_has_every_run_and_its_tables_the_sizes(tmp_path):
    raw = run_config("model", str(tmp_path)).model_dump(mode="json", exclude={"name", "seed"})
    sizes = {"records": [5, 10], "arms": ["without_trust"]}
    made = study(tmp_path, arms=["proxy_kd", "without_trust"], run=raw, sizes=sizes)
    directory = StudyDirectory.create(made)
    for run in directory.runs():
        tell(run)
        write_report(run, "all rounds done")
    write_study_report(directory)
    report = read_model(directory.report, StudyReport)
    assert [(one.name, one.seed, one.size) for one in report.arms] == [
        (arm.name, arm.seed, arm.size) for arm in directory.arms()
    ]
    assert {one.records for one in report.arms} == {24}  # 40, of which 8 are for validation and 8 for the test
    done = 6 + 2  # models, corpus, warm-up, score, distil, evaluate, and two rounds: 8 s at work on two devices each
    assert report.arms[0].device_hours == pytest.approx(done * 8 * 2 / 3600)
    assert report.study.reference == "proxy_kd"
    assert [row["size"] for row in report.sizes] == [5, 10, None]
    names = {"arms.csv", "table.csv", "table.md", "sizes.csv", "sizes.md", "savings.csv", "report.html", "report.json"}
    assert {path.name for path in directory.report.parent.iterdir()} == names | {"figures"}
    [saving] = report.savings
    assert (saving.arm, saving.measure) == ("without_trust", "held_out_nll")
    rows = list(csv.DictReader((directory.report.parent / "arms.csv").read_text().splitlines()))
    assert [row["size"] for row in rows] == [""] * 4 + ["5", "10"] * 2


def test_checking_a_study_counts_its_sizes(tmp_path):
    file = tmp_path / "s.yaml"
    sizes = {"records": [8, 32], "arms": ["jsd"]}
    file.write_text(yaml.safe_dump({"name": "t", "seeds": [1, 2], "arms": ["jsd", "takd"], "run": RUN, "sizes": sizes}))
    told = CliRunner().invoke(main, ["config", "check", str(file)])
    assert "2 arms by 2 seeds, 1 of them at 2 sizes too, are 8 runs" in told.output


def leaves(section, at=()):
    """Every value of a config that is no section, by its keys."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        yield from leaves(value, (*at, name)) if isinstance(value, BaseModel) else [((*at, name), value)]


def changed(section, keys, value):
    """The config with another value at `keys`."""
    name, *rest = keys
    inner = changed(getattr(section, name), rest, value) if rest else value
    return section.model_copy(update={name: inner})


def other(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return "another"


@pytest.mark.parametrize("source", ["proxy", "assistant"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_setting_that_changes_results_changes_what_may_be_shared(tmp_path, source):
    """A setting that no stage's key has would let one arm take over what another made under a different one."""
    raw = {**RUN, "name": "x", "runs_dir": str(tmp_path), "distillation": {"source": source}}
    config = validate_config(raw, "test")
    without = {"name", *WITHOUT_EFFECT} | ({"white_box"} if source == "proxy" else {"warmup", "alignment", "score"})
    before = stage_keys(config)
    missed = [
        ".".join(keys)
        for keys, value in leaves(config)
        if keys[0] not in without and keys not in (("engine", "adapters"), ("distillation", "source"))
        if stage_keys(changed(config, keys, other(value)))["evaluate"] == before["evaluate"]
    ]
    assert missed == []


def test_two_runs_may_link_the_same_adapter_at_once(tmp_path, monkeypatch):
    """Whoever comes second finds the file; where links cannot be made, no torn copy is ever seen."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (source / "weights").write_text("w")
    link_tree(source, target)
    link_tree(source, target)
    assert (target / "weights").read_text() == "w"

    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr("proxykd.study.adoption.os.link", refuse)
    link_tree(source, tmp_path / "copied")
    assert [path.name for path in (tmp_path / "copied").iterdir()] == ["weights"]
