"""Configs as they come: their encoding, their YAML, the wrong kind of them, and what they leave to the user."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from proxykd.config import load_collect_config, load_config
from proxykd.errors import ConfigError
from proxykd.study.studies import load_study
from services.cli.main import main

CONFIGS = Path(__file__).parents[2] / "configs"
RUN = {"name": "t", "corpus": {"path": "c.jsonl"}, "proxy": {"source": "p"}, "student": {"source": "s"}}
TEACHER = {"model": "m", "base_url": "https://host/v1"}


def load(tmp_path: Path, text: str | bytes):
    path = tmp_path / "c.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_config(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nseed: 1\nname: b\n", r"c\.yaml: name stands in line 1 and in line 3; remove one of them"),
        ("corpus:\n  path: a\n  limit: 1\n  path: b\n", r"path stands in line 2 and in line 4"),
        ("name: a\n1: b\n", r"key 1 in line 2 is no text; write it in quotes"),
        ("name: a\non: b\n", r"key on in line 2 is no text"),
        ("name: !!binary aGk=\n", r"is a bytes; write a text"),
        ("name: !!int x\n", r"c\.yaml: not YAML"),
        ("name: &a [*a]\n", r"nested too deeply, or within itself"),
        ("name: " + "[" * 20_000, r"nested too deeply"),
        ('name: "\\ud800"\n', r"c\.yaml: not YAML"),
        (
            "name: \u00e4\n".encode("latin-1"),
            r"is not UTF-8 \(Latin-1, perhaps: byte 0xe4 in line 1\); save it as UTF-8",
        ),
        ("name: a\n".encode("utf-16"), r"is UTF-16 or no text; save it as UTF-8"),
        ("name: a\n".encode("utf-16-le"), r"is UTF-16 or no text; save it as UTF-8"),
    ],
)
def test_a_file_that_would_be_misread_is_refused_with_the_fix(text, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, text)


def test_what_is_plain_is_read(tmp_path):
    merged = "base: &b {path: x}\n"
    text = yaml.safe_dump(RUN | {"proxy": {"source": "p", "template_date": "2025-01-02"}}).replace(
        "'2025-01-02'", "2025-01-02"
    )
    assert str(load(tmp_path, text).proxy.template_date) == "2025-01-02"
    assert load(tmp_path, yaml.safe_dump(RUN).encode("utf-8-sig")).name == "t"
    with pytest.raises(ConfigError, match="base: there is no such key"):
        load(tmp_path, merged + yaml.safe_dump(RUN))
    again = yaml.safe_dump(RUN).replace(
        "corpus:\n  path: c.jsonl", "corpus:\n  <<: {path: x, limit: 3}\n  path: c.jsonl"
    )
    assert (load(tmp_path, again).corpus.path, load(tmp_path, again).corpus.limit) == ("c.jsonl", 3)


NO_NUMBERS = [".inf", "-.inf", ".nan"]
NO_NUMBERS_AS_TEXT = ["NaN", "inf", "1e400"]
"""Where any text may stand they are one, which the API is free to take."""


@pytest.mark.parametrize(
    ("key", "number"),
    [
        *product(["alignment.beta", "corpus.limit", "collection.timeout_s"], NO_NUMBERS + NO_NUMBERS_AS_TEXT),
        *product(["teacher.extra_body.penalty"], NO_NUMBERS),
    ],
)
def test_numbers_that_are_none_are_refused(key, number, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(RUN))
    with pytest.raises(ConfigError, match=key.replace(".penalty", "")):
        load_config(path, (f"{key}={number}",))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("corpus.path", "~/c.jsonl"),
        ("proxy.source", "~somebody/m"),
        ("quality.benchmarks", "[a, ~/b]"),
        ("runs_dir", "~/r"),
    ],
)
def test_a_home_that_only_a_shell_knows_is_refused_with_the_whole_path(key, value, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/u")
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(RUN))
    with pytest.raises(ConfigError, match=rf"{key} is '~.*', but ~ is a shell's; write (/home/u/|~somebody)"):
        load_config(path, (f"{key}={value}",))
    assert load_config(path, ("teacher.system=~/ is where the heart is",)).teacher.system


def test_a_study_is_not_a_run_and_a_run_is_not_a_study():
    study, run = CONFIGS / "study-miniature.yaml", CONFIGS / "quickstart.yaml"
    for load_one in (load_config, load_collect_config):
        with pytest.raises(ConfigError, match=r"is a study's config, not a run's; use it with: proxykd study "):
            load_one(study)
    with pytest.raises(ConfigError, match=r"is a run's config, not a study's; use it with: proxykd run "):
        load_study(run)
    for command, path in (("run", study), ("plan", study), ("study", run)):
        told = CliRunner().invoke(main, [command, str(path)])
        assert (told.exit_code, told.output.count("\n")) == (2, 1), told.output
    assert "valid; 22 arms by 3 seeds" in CliRunner().invoke(main, ["config", "check", str(study)]).output


@pytest.mark.parametrize("name", ["own-corpus", "gpu-node", "paper"])
def test_what_a_shipped_config_leaves_to_its_user_is_said_so(name):
    path = CONFIGS / f"{name}.yaml"
    with pytest.raises(ConfigError) as told:
        load_config(path)
    assert str(told.value).startswith(f"{path}: set corpus.path, your text: --set corpus.path=FILE")
    with pytest.raises(ConfigError, match=r"corpus\.pth: there is no such key; did you mean path"):
        load_config(path, ("corpus.pth=x",))


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({"base_url": "host/v1"}, r"is 'host/v1'; write https://host/path, or `default`"),
        ({"base_url": "https://[x/v1"}, r"no URL"),
        (
            {"base_url": "https://r.openai.azure.com/openai/deployments/d"},
            r"without its version; add \?api-version=.* or use https://r\.openai\.azure\.com/openai/v1",
        ),
        ({"extra_body": {"n": 2}}, r"extra_body\.n would go before teacher\.samples; remove it"),
        ({"extra_body": {"max_completion_tokens": 9}}, r"would go before teacher\.max_tokens"),
        ({"leave_out": ["model"]}, r"leave_out"),
        ({"provider": "anthropic", "leave_out": ["seed"]}, r"Anthropic's API is told what it takes; remove it"),
    ],
)
def test_a_teacher_that_cannot_be_asked_so_is_refused(teacher, message, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(json.dumps({"teacher": TEACHER | teacher}))
    with pytest.raises(ConfigError, match=message):
        load_collect_config(path)


def test_what_only_both_sections_show(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(json.dumps({"teacher": TEACHER}))
    with pytest.raises(ConfigError, match=r"collection\.budget cannot be kept; remove one"):
        load_collect_config(path, ("teacher.leave_out=[max_tokens]", "collection.budget.tokens=5"))
    azure = "teacher.base_url=https://r.openai.azure.com/openai/deployments/d?api-version=1"
    with pytest.raises(ConfigError, match=r"takes no batches; set teacher\.base_url to https://HOST/openai/v1"):
        load_collect_config(path, (azure, "collection.batch={}"))
