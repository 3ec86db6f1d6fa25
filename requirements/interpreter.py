"""Which Python the environment is made of: 3.11 or 3.12, found by running it. Runs on any Python from 3.8."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

SUPPORTED = ((3, 11), (3, 12))
CANDIDATES = ("python3.11", "python3.12", "python3", "python")
PROBE = """
import importlib.util, json, os, sys, sysconfig
header = os.path.join(sysconfig.get_paths()["include"], "Python.h")
venv = all(importlib.util.find_spec(name) for name in ("venv", "ensurepip"))
print(json.dumps({"version": sys.version_info[:3], "venv": venv, "headers": os.path.exists(header)}))
"""


class NoPythonError(Exception):
    """No Python that can be used; the message is one line with what mends it."""


@dataclass(frozen=True)
class Interpreter:
    """A Python that ran. `command` starts it."""

    command: str
    version: tuple[int, int, int]
    venv: bool
    headers: bool

    def lacks(self) -> str | None:
        """What keeps it from being used, or None."""
        name = "python{}.{}".format(*self.version)
        if self.version[:2] not in SUPPORTED:
            return f"{self.command} is Python {'.'.join(map(str, self.version))}"
        if not self.venv:
            return f"{self.command} cannot make environments (sudo apt-get install {name}-venv)"
        if not self.headers:
            return f"{self.command} has no Python.h, which vLLM's kernels include (sudo apt-get install {name}-dev)"
        return None


def run(command: str) -> Interpreter | None:
    """What a command says of itself; None where it does not run (a missing program, a shim without a version)."""
    try:
        done = subprocess.run([command, "-c", PROBE], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60)
        facts = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    major, minor, patch = facts["version"]
    return Interpreter(command, (major, minor, patch), facts["venv"], facts["headers"])


def choose(venv: Path, named: str | None) -> Interpreter:
    """The Python that `named` names, else that of the environment that is there, else the first that serves.

    Raises:
        NoPythonError: none serves, or `named` is another version than the environment is made of.
    """
    present = run(str(venv / "bin" / "python"))
    if named:
        found = _usable(run(named), named)
        if present and present.version[:2] != found.version[:2]:
            raise NoPythonError(
                f"{venv} is made of Python {_version(present)}, and PYTHON={named} is {_version(found)}: "
                f"rm -r {venv}, then run the same command again"
            )
        return found
    if present:
        return _usable(present, present.command)
    found_all = [found for found in map(run, CANDIDATES) if found]
    for found in found_all:
        if found.lacks() is None:
            return found
    seen = "; ".join(dict.fromkeys(found.lacks() or "" for found in found_all)) or "no Python runs"
    raise NoPythonError(
        f"neither Python 3.11 nor 3.12 can be used: {seen}. Debian, Ubuntu: sudo apt-get install python3-venv "
        f"python3-dev where python3 is one of them; else PYTHON=/path/to/python3.12 names one"
    )


def _usable(found: Interpreter | None, command: str) -> Interpreter:
    if found is None:
        raise NoPythonError(f"{command} does not run: PYTHON=... names a Python 3.11 or 3.12")
    if lacking := found.lacks():
        raise NoPythonError(f"{lacking}: Python 3.11 or 3.12, with headers and venv, is needed")
    return found


def _version(found: Interpreter) -> str:
    return ".".join(map(str, found.version))
