"""Installs a lock into .venv: `python3 -m requirements.install cpu`, then `dev` or `bench`. The Makefile calls it.

The machine is checked before anything is downloaded. uv installs, and knows torch's own index of CPU builds; where it
cannot reach that, torch comes from pip's index, and pip takes whatever uv could not. What is there already is left,
so a killed install goes on where it was. At the end the build of torch and vLLM's kernels are checked.

Runs on any Python from 3.8, before anything is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from requirements import machine, packages
from requirements.interpreter import Interpreter, NoPythonError, choose
from requirements.progress import Stopped, alone, last_words, watch

GROUP = 40
"""Packages a call: what a kill can cost, and how often progress is told."""
PROBE_S = 5
"""How long uv waits for torch's index before pip's is asked."""
COMPILE = "import compileall, sys; compileall.compile_dir(sys.argv[1], quiet=2, workers=0)"
VERIFY = """
import torch
from vllm.platforms import current_platform
current_platform.import_kernels()
assert any(name.startswith("_C::") for name in torch._C._dispatch_get_all_op_names()), "vLLM's kernels did not load"
print(torch.__version__)
"""


class InstallError(Exception):
    """One line, with what mends it."""


class Installation:
    """An environment at `root`/.venv that is brought to a lock."""

    def __init__(self, root: Path, python: Interpreter):
        self.root, self.venv = root, root / ".venv"
        self.base = python
        self.python = str(self.venv / "bin" / "python")
        self.site = self.venv / "lib" / "python{}.{}".format(*python.version) / "site-packages"
        self.uv = [str(self.venv / "bin" / "uv"), "pip", "install", "--python", self.python, "--no-deps"]
        self.pip = [self.python, "-m", "pip", "install", "--disable-pip-version-check", "--no-deps", "--no-compile"]

    def run(self, lock: str) -> None:
        """Everything that the lock pins, the right build of torch among it; for `cpu` the project itself too.

        Raises:
            InstallError: a package cannot be had, or what came is not what a CPU machine runs.
            Stopped: an installer failed; its last words are in the message.
        """
        wanted = packages.pins(self.root / "requirements" / f"{lock}.lock")
        self._make_environment()
        absent = packages.missing(self.site, wanted)
        if absent:
            print(f"{lock}.lock: {len(wanted) - len(absent)} of {len(wanted)} packages are there", flush=True)
            self._fetch_uv(wanted)
            if "torch" in absent:
                self._torch(wanted["torch"])
            self._rest(wanted)
            watch([self.python, "-c", COMPILE, str(self.site)], "bytecode")
        if lock == "cpu":
            watch([*self.pip, "--no-build-isolation", "--editable", str(self.root)], "proxykd itself")
            self._verify(wanted["torch"])

    def _make_environment(self) -> None:
        """Again where it was cut off: pip is the last thing that an environment gets."""
        if not Path(self.python).exists():
            watch([self.base.command, "-m", "venv", str(self.venv)], "the environment")
        elif subprocess.run([self.python, "-m", "pip", "--version"], capture_output=True).returncode:
            watch([self.python, "-m", "ensurepip", "--upgrade"], "pip")

    def _fetch_uv(self, wanted: dict[str, str]) -> None:
        pinned = {name: version for name, version in wanted.items() if name == "uv"}
        for name, version in packages.missing(self.site, pinned).items():
            watch([*self.pip, f"{name}=={version}"], name)

    def _torch(self, version: str) -> None:
        """Replaces a build that is there: it is missing, or not for CPUs."""
        why = self._torch_index_fails(version)
        if why is None:
            print("torch comes from its own index of CPU builds", flush=True)
            watch([*self.uv, "--torch-backend", "cpu", "--reinstall-package", "torch", f"torch=={version}"], "torch")
            return
        print(f"torch comes from pip's index: uv cannot reach torch's own ({why})", flush=True)
        if self._pip_has_only_cuda(version):
            raise InstallError(_refusal(version, f"pip's index has a CUDA build of it, and uv said: {why}"))
        watch([*self.pip, "--force-reinstall", f"torch=={version}"], "torch")

    def _torch_index_fails(self, version: str) -> str | None:
        """What uv says against torch's index, after one short try; None where it answers."""
        short = {"UV_HTTP_TIMEOUT": PROBE_S, "UV_HTTP_CONNECT_TIMEOUT": PROBE_S, "UV_HTTP_RETRIES": 0}
        command = [*self.uv, "--dry-run", "--torch-backend", "cpu", "--reinstall-package", "torch", f"torch=={version}"]
        environment = {**os.environ, **{name: str(value) for name, value in short.items()}}
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=4 * PROBE_S)
        except OSError as error:
            return f"uv does not run: {error}"
        except subprocess.TimeoutExpired:
            return f"no answer in {4 * PROBE_S} s"
        return None if done.returncode == 0 else last_words(done.stderr)

    def _pip_has_only_cuda(self, version: str) -> bool:
        """By the metadata of what pip would take: it asks for CUDA's libraries, which are not on this machine."""
        command = [*self.pip, "--quiet", "--dry-run", "--ignore-installed", "--report", "-", f"torch=={version}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise InstallError(_refusal(version, f"pip said: {last_words(done.stderr)}"))
        metadata = json.loads(done.stdout)["install"][0]["metadata"]
        cuda = any(needed.startswith(("nvidia-", "cuda-")) for needed in metadata.get("requires_dist", []))
        return cuda and not metadata["version"].endswith("+cpu")

    def _rest(self, wanted: dict[str, str]) -> None:
        """All but torch: by uv as far as it comes, by pip what is left."""
        rest = {name: version for name, version in wanted.items() if name != "torch"}
        try:
            self._in_groups(self.uv, "uv", rest)
        except Stopped as stopped:
            print(f"pip goes on where uv stopped: {last_words(str(stopped))}", flush=True)
            self._in_groups(self.pip, "pip", rest)

    def _in_groups(self, command: list[str], tool: str, rest: dict[str, str]) -> None:
        absent = list(packages.missing(self.site, rest).items())
        done = len(rest) - len(absent)
        started = time.monotonic()
        for group in (absent[i : i + GROUP] for i in range(0, len(absent), GROUP)):
            watch([*command, *(f"{name}=={version}" for name, version in group)], f"{tool}, {group[0][0]} and others")
            done += len(group)
            size_mb = packages.size(self.site, rest) / 1e6
            print(
                f"  {tool}: {done} of {len(rest)} packages, {size_mb:,.0f} MB, {time.monotonic() - started:.0f} s",
                flush=True,
            )

    def _verify(self, version: str) -> None:
        """Raises InstallError where the environment cannot run vLLM on a CPU."""
        if built := packages.accelerator(self.site):
            raise InstallError(_refusal(version, f"what came was built for {built}"))
        done = subprocess.run([self.python, "-c", VERIFY], capture_output=True, text=True, cwd=str(self.venv))
        if done.returncode:
            raise InstallError(
                f"vLLM does not load: {last_words(done.stderr)}; rm -r .venv and run the same command again"
            )
        print(f"torch {done.stdout.split()[-1]} and vLLM's kernels load", flush=True)


def _refusal(version: str, why: str) -> str:
    return (
        f"no CPU build of torch {version}: {why}. Name an index that has one (PIP_EXTRA_INDEX_URL=https://...) or a "
        f"folder with its wheel (PIP_FIND_LINKS=...), and run the same command again"
    )


def main(root: Path, arguments: list[str]) -> int:
    """0 where the environment is what the lock says; else 1, after one line for each thing that keeps it from that."""
    parser = argparse.ArgumentParser(prog="python3 -m requirements.install", description="installs a lock into .venv")
    parser.add_argument("lock", choices=["cpu", "dev", "bench"])
    parser.add_argument("--python", help="a Python 3.11 or 3.12; without it, the first that runs")
    options = parser.parse_args(arguments)
    found = machine.this_machine(root / ".venv")
    lines = found.lacks()
    try:
        python = choose(root / ".venv", options.python)
        if not lines:
            print(f"Python {'.'.join(map(str, python.version))}, {found.disk_gib:.0f} GiB of disk free", flush=True)
            with alone(root / ".venv"):
                Installation(root, python).run(options.lock)
    except (NoPythonError, InstallError, Stopped) as error:
        lines.append(str(error))
    except KeyboardInterrupt:
        lines.append("stopped; the same command goes on from here")
    for line in lines:
        print(f"install: {line}", file=sys.stderr)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(Path(__file__).resolve().parent.parent, sys.argv[1:]))
