"""Whether this machine has what a run needs."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

from proxykd.config import RunConfig
from proxykd.errors import ConfigError, ResourceError
from proxykd.planning.requirements import (
    Check,
    cpus_needed,
    disk_needed,
    gpus_needed,
    memory_needed,
    require,
    shared_memory_needed,
)
from proxykd.runs.storage import refuses_now

TRACKER_EXTRAS = ("wandb", "mlflow")
SHARED_MEMORY = Path("/dev/shm")
FIX = (
    "resources.logical_cpus sets the CPUs that Ray announces; fewer engine_replicas, trainer_workers or "
    "micro_batch_tokens need less; runs_dir names another disk; --address names a cluster; configs/quickstart.yaml "
    "needs no GPU"
)


def require_machine(config: RunConfig, folder: Path) -> None:
    """Refuses a run that this machine cannot hold, before anything is started. `folder` is where the run will write.

    Raises:
        ResourceError: too few CPUs or GPUs, too little memory, disk or shared memory; or storage that is read-only.
    """
    require_writable(folder)
    gpus, cpus = _local_gpus(), config.resources.logical_cpus
    memory, disk, shm = available_memory_gib(), free_gib(folder), free_gib(SHARED_MEMORY)
    checks = [
        Check("logical CPUs", cpus_needed(config), cpus, cpus),
        Check("GPUs", gpus_needed(config), gpus, gpus),
        Check("memory, GiB", memory_needed(config), memory, memory),
        Check(f"disk at {folder}, GiB", disk_needed(config, held_gib(folder)), disk, disk),
        Check("shared memory, GiB", shared_memory_needed(config), shm, shm),
    ]
    require(checks, "this machine", FIX)


def require_trackers(config: RunConfig) -> None:
    """Raises ConfigError where a tracker that the config names is not installed."""
    for name in config.tracking.trackers:
        if name in TRACKER_EXTRAS and importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"tracking.trackers names {name}, which is not installed: pip install 'proxykd[{name}]', or leave it "
                f"out"
            )


def require_writable(folder: Path) -> None:
    """Tries to write to `folder`: permissions tell nothing of a file system that has turned read-only upon an error.

    Raises:
        ResourceError: it cannot be written.
    """
    if (message := refuses_now(folder, size=0)) is not None:
        raise ResourceError(f"the run's storage cannot be written: {message}")


def available_memory_gib() -> float:
    """What this machine can give without swapping, by the kernel's own estimate."""
    match = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1]) / 2**20


def free_gib(folder: Path) -> float:
    return shutil.disk_usage(folder).free / 2**30


def held_gib(folder: Path) -> float:
    """What lies in a folder, links apart; what goes meanwhile is not there."""
    held = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                held += os.lstat(f"{place}/{name}").st_size
    return held / 2**30


def _local_gpus() -> int:
    """GPUs that this process may use, counted without loading torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = len(list(Path("/dev").glob("nvidia[0-9]*")))
    return devices if visible is None else min(devices, len([v for v in visible.split(",") if v.strip()]))
