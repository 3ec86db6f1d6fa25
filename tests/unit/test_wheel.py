"""A wheel holds every file of the packages, and what is installed from it works without the checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from tests.tiny_model import corpus_rows, make_tokenizer

CHECKOUT = Path(__file__).parents[2]
PACKAGES = ("actors", "proxykd", "services")
BESIDE = ("benchmarks", "requirements", "tests")
"""Of the checkout, folders that could be taken for packages."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, since building writes into the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in (*PACKAGES, *BESIDE):
        shutil.copytree(CHECKOUT / name, folder / "checkout" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, folder / "checkout")
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", build, folder], cwd=folder / "checkout", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    [built] = folder.glob("proxykd-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel) -> Path:
    """A folder with what the wheel installs. pip's --no-deps: the environment has all else."""
    folder = wheel.parent / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile"]
    subprocess.run([*pip, "--target", folder, wheel], check=True)
    return folder


@pytest.fixture
def run(installed, tmp_path):
    """Runs a command that sees the wheel's packages and not the checkout's; returns its standard output."""

    def of(*command: str | Path) -> str:
        environment = os.environ | {"PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return of


def test_it_holds_every_file_of_the_packages_and_nothing_else(wheel):
    names = [Path(name) for name in zipfile.ZipFile(wheel).namelist()]
    held = {name for name in names if not name.parts[0].endswith(".dist-info")}
    files = {
        path.relative_to(CHECKOUT)
        for package in PACKAGES
        for path in (CHECKOUT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert held == files


def test_what_is_served_and_read_comes_out_of_it(run, installed):
    told = json.loads(run(sys.executable, CHECKOUT / "tests" / "from_wheel.py"))
    assert told["proxykd"] == str(installed / "proxykd")
    assert set(told["static"].values()) == {200}
    assert {"app.js", "style.css", "vendor/uPlot.iife.min.js"} < told["static"].keys()
    assert 'src="app.js"' in told["page"]
    assert "</html>" in told["study"]
    assert told["chat_templates"] == ["chatml", "harmony", "llama-2", "zephyr"]


def test_its_command_helps_and_previews_with_a_shipped_template(run, installed, tmp_path):
    proxykd = installed / "bin" / "proxykd"
    assert "preview" in run(proxykd, "--help")
    make_tokenizer().save_pretrained(tmp_path / "model")
    rows = [json.dumps(row) for row in corpus_rows(60)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(rows) + "\n")
    model = {"source": "model"}
    config = {"name": "wheel", "corpus": {"path": "corpus.jsonl"}, "student": model}
    config |= {"proxy": model | {"chat_template": "chatml"}, "alignment": {"rounds": 2}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert "60 of 60 records would be used" in run(proxykd, "preview", "config.yaml", "--records", "1")
