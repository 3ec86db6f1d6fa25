"""Where numbers come from: the code's commit and the machine."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

from proxykd.runs.json_model import JsonModel


class Hardware(JsonModel):
    """Processor, cores that it may use, memory, GPUs."""

    cpu: str
    cores: int
    memory_gib: float
    gpus: list[str]


def git_revision() -> str | None:
    """The commit that the code was checked out at, or None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def hardware() -> Hardware:
    """This machine's."""
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return Hardware(
        cpu=names[0] if names else platform.processor(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(memory, 1),
        gpus=[torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    )
