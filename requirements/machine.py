"""What a machine must have before 3 GB are downloaded to it: one line for each thing that it lacks.

Runs on any Python from 3.8, before anything is installed.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

GLIBC = (2, 31)
"""The newest that a locked wheel asks for (llguidance, manylinux_2_31)."""
DISK_GIB = 12.0
"""The environment (5), what pip and uv keep of it, the quickstart's models and a run."""
MEMORY_GIB = 8.0
SOLD_AS = 0.93
"""A machine sold as 8 GiB shows less: the kernel keeps some for itself."""


@dataclass(frozen=True)
class Machine:
    """Facts of a machine; `None` where there is no such thing."""

    system: str
    processor: str
    glibc: tuple[int, int] | None
    compiler: str | None
    make: str | None
    disk_gib: float
    installed_gib: float
    memory_gib: float

    def lacks(self) -> list[str]:
        """One line for each thing that is missing, with what mends it; empty where all is there."""
        if self.system != "Linux" or self.processor not in ("x86_64", "AMD64"):
            return [
                f"{self.system} on {self.processor}: vLLM's CPU build and torch are locked for Linux on x86-64; use "
                f"such a machine, virtual machine or container"
            ]
        lines = []
        if self.glibc is None or self.glibc < GLIBC:
            found = "another C library (musl?)" if self.glibc is None else "glibc {}.{}".format(*self.glibc)
            lines.append(f"{found}: the wheels need glibc {GLIBC[0]}.{GLIBC[1]} (Debian 11, Ubuntu 20.04 or newer)")
        if self.compiler is None:
            lines.append(
                "no C++ compiler (g++, or what CXX names), with which vLLM builds a kernel when it scores: "
                "sudo apt-get install g++"
            )
        if self.make is None:
            lines.append("no make: sudo apt-get install make")
        needed = max(DISK_GIB - self.installed_gib, 0.0)
        if self.disk_gib < needed:
            lines.append(
                f"{self.disk_gib:.1f} GiB of free disk where .venv lies, {needed:.1f} are needed: free some, or clone "
                f"to another disk"
            )
        if self.memory_gib < MEMORY_GIB * SOLD_AS:
            lines.append(f"{self.memory_gib:.1f} GiB of memory, {MEMORY_GIB:.0f} are needed: use a larger machine")
        return lines


def this_machine(venv: Path) -> Machine:
    """The facts of the machine that this runs on; `venv` is where the environment lies or will lie."""
    return Machine(
        system={"Darwin": "macOS"}.get(platform.system(), platform.system()),
        processor=platform.machine(),
        glibc=_glibc(),
        compiler=shutil.which(os.environ.get("CXX", "g++")),
        make=shutil.which("make"),
        disk_gib=shutil.disk_usage(str(venv.parent)).free / 2**30,
        installed_gib=_size(venv) / 2**30,
        memory_gib=_memory() / 2**30 if sys.platform == "linux" else 0.0,
    )


def _glibc() -> tuple[int, int] | None:
    try:
        version = re.match(r"glibc (\d+)\.(\d+)", os.confstr("CS_GNU_LIBC_VERSION") or "")
    except (AttributeError, ValueError, OSError):  # what other C libraries answer
        return None
    return (int(version[1]), int(version[2])) if version else None


def _size(folder: Path) -> int:
    files = (os.path.join(where, name) for where, _, names in os.walk(str(folder)) for name in names)
    return sum(os.lstat(file).st_size for file in files)


def _memory() -> int:
    """Of the machine, or of the container that this runs in where that is less."""
    total = re.search(r"^MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    assert total is not None
    limits = [int(total[1]) * 1024]
    for limit in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        if limit.exists() and limit.read_text().strip().isdigit():
            limits.append(int(limit.read_text()))
    return min(limits)
