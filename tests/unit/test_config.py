"""Configs: what is refused and how, overrides, the hash, and that looking at one loads no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from proxykd.config import load_config
from proxykd.errors import ConfigError
from proxykd.planning.describe import describe
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import read_json, write_json
from services.cli.main import main

CONFIGS = Path(__file__).parents[2] / "configs"
SHIPPED = sorted(path for path in CONFIGS.glob("*.yaml") if not path.stem.startswith("study-"))
MINIMAL = {"name": "t", "corpus": {"path": "c.jsonl"}, "proxy": {"source": "p"}, "student": {"source": "s"}}


def load(tmp_path, *overrides, **sections):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(MINIMAL | sections))
    return load_config(path, overrides)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_configs_are_valid_and_described(path):
    lines = describe(
        load_config(path, ("corpus.path=x.jsonl",) if path.stem in ("own-corpus", "gpu-node", "paper") else ())
    )
    assert "valid" in lines[0]
    assert any("needs" in line for line in lines)


def test_what_the_slices_are_is_described(tmp_path):
    def told(*overrides):
        return next(line for line in describe(load(tmp_path, *overrides)) if "slices" in line)

    assert told().endswith("validation 5.0%, test 5.0%, warmup 9.0%, alignment 40.5%, distillation 40.5%")
    whole = told("corpus.whole_text=true", "corpus.training_limit=80")
    assert whole.endswith("test 5.0%, training 90.0%; of what is not held out 80 records at most, drawn by the seed")


def test_defaults_are_the_papers(tmp_path):
    config = load(tmp_path)
    assert config.alignment.rounds == 16
    assert config.warmup.learning_rate == config.alignment.learning_rate == config.distillation.learning_rate == 1e-5
    assert (config.distillation.alpha, config.score.top_k, config.corpus.max_length) == (100.0, 10, 1024)
    assert (config.proxy.lora.rank, config.proxy.lora.alpha, config.warmup.global_batch) == (16, 32, 32)


def test_the_hash_covers_results_and_not_resources(tmp_path):
    config = load(tmp_path)
    assert load(tmp_path, "resources.trainer_workers=2", "runs_dir=/elsewhere").hash8 == config.hash8
    assert load(tmp_path, "alignment.beta=0.2").hash8 != config.hash8
    assert config.run_id == f"t-{config.hash8}"


def test_adapters_reach_the_engine_as_suits_the_device(tmp_path):
    """What was used stands in the frozen config; the run is the same on either device, as with other resources."""
    cpu, gpu = (load(tmp_path, f"resources.device={device}") for device in ("cpu", "gpu"))
    assert (cpu.engine.adapters, gpu.engine.adapters) == ("merged", "lora")
    assert cpu.sha256 == gpu.sha256
    asked = load(tmp_path, "engine.adapters=lora")
    assert asked.engine.adapters == "lora"
    assert asked.sha256 == cpu.sha256
    assert load(tmp_path, "engine.dtype=float32").sha256 != cpu.sha256
    runs = f"runs_dir={tmp_path / 'runs'}"
    for device, adapters in (("gpu", "lora"), ("cpu", "merged")):
        run = RunDirectory.create(load(tmp_path, runs, f"resources.device={device}"))
        assert read_json(run.root / "config.json")["engine"]["adapters"] == adapters
    assert run.config() == load(tmp_path, runs)
    file = tmp_path / "c.yaml"
    shown = CliRunner().invoke(main, ["config", "show", str(file), "--set", "resources.device=gpu"])
    assert yaml.safe_load(shown.output)["engine"]["adapters"] == "lora"


def test_shipped_configs_leave_the_choice_to_the_device():
    assert [path.name for path in CONFIGS.rglob("*.yaml") if "adapters:" in path.read_text()] == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("alignment.bta=1",), r"alignment\.bta: there is no such key; did you mean beta\?"),
        (("engine.max_loras=8",), r"engine\.max_loras: there is no such key; remove it"),
        (
            ("white_box.teacher.sorce=x",),
            r"teacher\.source: is not set; set it\n.*teacher\.sorce: .*did you mean source",
        ),
        (("warmup.early_stopping=1",), r"early_stopping 1 never comes with 1 evaluations; set evaluations above it"),
        (("alignment.min_improvement=.inf",), r"min_improvement: Input should be a finite number \(got inf\)"),
        (("alignment.beta=-1",), r"alignment\.beta.*greater than 0 \(got -1\)"),
        (("proxy.lora.rank=600",), r"proxy\.lora\.rank.*less than or equal to 512 \(got 600\)"),
        (("corpus.path=null",), r"--set corpus\.path=FILE"),
        (("corpus.prompts=p.jsonl",), r"set one of them"),
        (("corpus.path=null", "corpus.prompts=p"), r"set teacher\.base_url or teacher\.local"),
        (("proxy.method=full",), r"set it to 'lora'"),
        (("corpus.split.warmup=0.5",), r"make them sum to 1"),
        (("corpus.max_length=64", "alignment.max_new_tokens=64"), r"leave it out for what each prompt leaves"),
        (("student.method=full",), r"set student\.dtype=float32"),
        (("student.drop_layers=[1,1]",), r"distinct layer indices"),
        (("corpus.split.validation=0.3", "corpus.split.test=0.3"), r"validation \+ test is 0\.6; keep it at or below"),
        (("corpus.follow=10", "corpus.limit=5"), r"leave corpus\.prompts and corpus\.limit out"),
        (("corpus.follow=10", "distillation.source=none"), r"corpus\.follow is for runs that align a proxy"),
        (
            ("corpus.unlabelled=p", "distillation.source=base"),
            r"distillation\.source base has none; remove it, or set distillation\.source=proxy",
        ),
        (("score.method=drawn",), r"the engine tells the likeliest tokens alone; set score\.source=trainer"),
        (
            ("score.method=drawn", "score.source=trainer", "distillation.divergence=truncated"),
            r"is truncated, but .* set distillation\.divergence=tail",
        ),
        (
            ("score.method=drawn", "score.source=trainer", "distillation.source=shift"),
            r"a shift needs the proxy's own probabilities; set score\.method=top_k",
        ),
        (("teacher.base_url=x", "teacher.local.source=y"), r"set one of them"),
        (("teacher.provider=anthropic", "teacher.top_logprobs=5"), r"is 5, but Anthropic.* no log-probs; set it to 0"),
        (("teacher.provider=anthropic", "teacher.temperature=1.5"), r"is 1\.5, but .* at most 1; lower it"),
        (("collection.budget.cost=5",), r"needs collection\.prices\.prompt and \.completion"),
        (("collection.batch={}", "collection.hedge_after_s=1"), r"a batch is not asked twice"),
        (("redis.url=redis://u:secret@h:1",), r"set \$PROXYKD_REDIS_USERNAME and"),
        (("redis.url=http://h:1",), r"is 'http://h:1'; write redis://host:port"),
        (("resources.engine_tensor_parallel=2",), r"is 2, which needs GPUs; set resources\.device=gpu"),
        (("name=Bad Name",), r"name: "),
        (("nonsense",), r"not of the form section\.key=value"),
        (("name.x=1",), r"'name' is a value, not a section"),
    ],
)
def test_bad_configs_name_the_value_and_the_fix(tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, *overrides)


def test_missing_and_torn_files(tmp_path):
    with pytest.raises(ConfigError, match="no config at"):
        load_config(tmp_path / "no.yaml")
    (tmp_path / "torn.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match="not YAML"):
        load_config(tmp_path / "torn.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match="holds list"):
        load_config(tmp_path / "list.yaml")


def test_where_runs_lie_can_come_from_the_environment(tmp_path, monkeypatch):
    assert load(tmp_path).runs_dir == "runs"
    monkeypatch.setenv("PROXYKD_RUNS_DIR", "/shared/runs")
    assert load(tmp_path).runs_dir == "/shared/runs"
    assert load(tmp_path, "runs_dir=mine").runs_dir == "mine"


def test_parity_threshold_follows_the_dtypes(tmp_path):
    assert load(tmp_path).parity_threshold == 0.15
    assert load(tmp_path, "proxy.dtype=float32", "engine.dtype=float32").parity_threshold == 0.01
    assert load(tmp_path, "alignment.parity_threshold=0.3").parity_threshold == 0.3


def test_checking_a_config_and_help_load_neither_torch_nor_ray():
    code = (
        "import sys; from click.testing import CliRunner; from services.cli.main import main\n"
        f"result = CliRunner().invoke(main, ['config', 'check', {str(CONFIGS / 'quickstart.yaml')!r}])\n"
        "assert result.exit_code == 0, result.output\n"
        "assert CliRunner().invoke(main, ['--help']).exit_code == 0\n"
        "loaded = {'torch', 'transformers', 'ray', 'vllm'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=CONFIGS.parent)


OPEN = {"teacher": {"source": "open"}}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"distillation": {"source": "white_box"}}, "set white_box.teacher.source"),
        ({"distillation": {"source": "assistant"}}, "set white_box.teacher.source"),
        (
            {"distillation": {"source": "white_box"}, "white_box": OPEN | {"on_policy": True}}
            | {"resources": {"parallel": "fsdp2"}},
            "set resources.parallel=ddp",
        ),
        (
            {"distillation": {"source": "white_box"}, "white_box": OPEN | {"max_new_tokens": 1024}},
            "white_box.max_new_tokens 1024 limits nothing",
        ),
    ],
)
def test_a_baseline_that_lacks_what_it_needs_is_refused(tmp_path, sections, message):
    with pytest.raises(ConfigError) as told:
        load(tmp_path, **sections)
    assert message in str(told.value)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"distillation": {"source": "none"}}, "set distillation.source=proxy or on_policy.judge=preference"),
        ({"distillation": {"source": "base"}}, "set distillation.source=proxy or on_policy.judge=preference"),
        ({"distillation": {"source": "white_box"}, "white_box": OPEN}, "remove on_policy"),
        ({"resources": {"parallel": "fsdp2"}}, "set resources.parallel=ddp"),
        ({"on_policy": {"max_new_tokens": 1024}}, "on_policy.max_new_tokens 1024 limits nothing"),
        ({"on_policy": {"divergence": "tvd"}}, "on_policy.divergence"),
        ({"on_policy": {"max_length_ratio": 1.0}}, "on_policy.max_length_ratio"),
    ],
)
def test_an_on_policy_phase_that_cannot_work_is_refused(tmp_path, sections, message):
    with pytest.raises(ConfigError) as told:
        load(tmp_path, **{"on_policy": {}} | sections)
    assert message in str(told.value)


def test_preference_needs_no_proxy_to_judge(tmp_path):
    phase = {"judge": "preference"}
    assert load(tmp_path, on_policy=phase, distillation={"source": "none"}).on_policy.judge == "preference"
    assert load(tmp_path, on_policy={}).on_policy.judge == "proxy"
    assert load(tmp_path).on_policy is None


def test_an_open_teacher_that_no_arm_uses_is_no_model_of_the_run(tmp_path):
    config = load(tmp_path, white_box=OPEN)
    assert list(config.models) == ["proxy", "student"]
    assert config.open_teacher is None
    used = load(tmp_path, white_box=OPEN, distillation={"source": "white_box"})
    assert list(used.models) == ["proxy", "student", "white_box"]


def test_a_key_that_is_no_option_is_not_repeated_with_its_value(tmp_path):
    with pytest.raises(ConfigError, match=r"teacher\.api_key: there is no such key; did you mean api_key_") as told:
        load(tmp_path, "teacher.api_key=sk-secret")
    assert "sk-secret" not in str(told.value)


def test_an_older_run_is_refused_by_the_key_that_is_gone(tmp_path):
    run = RunDirectory.create(load(tmp_path, f"runs_dir={tmp_path / 'runs'}"))
    path = run.root / "config.json"
    kept = read_json(path)
    kept["engine"]["max_lora_rank"] = 16
    write_json(path, kept)
    with pytest.raises(ConfigError, match=r"config\.json is not a valid config:\n  engine\.max_lora_rank: there is no"):
        run.config()
