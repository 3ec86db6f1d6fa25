"""What a run needs, stage by stage and pool by pool, without loading a model; and the table of what is missing."""

from __future__ import annotations

from dataclasses import dataclass

from proxykd.config import RunConfig
from proxykd.costs.demands import Demand, ProcessDemands
from proxykd.costs.memory_plan import disk_gib
from proxykd.errors import ResourceError
from proxykd.stages.table import stages_of

RAY_GIB = 1.5
SPARE_DISK_GIB = 2.0
SHM_GIB = 1.0
"""Shared memory of a node whose GPUs work together. (Where it is small, Ray's object store takes a disk.)"""


@dataclass(frozen=True)
class Check:
    """One line of a preflight. `most` is what there can be once an autoscaler has added all it may."""

    what: str
    needed: float
    there: float
    most: float

    @property
    def short(self) -> bool:
        return self.needed > self.most


def stage_demands(config: RunConfig) -> list[list[Demand]]:
    """What each stage holds at once, at every step of its own."""
    processes = ProcessDemands(config)
    return [demands for stage in stages_of(config) for demands in stage.demands(processes)]


def pool_demands(config: RunConfig) -> dict[str | None, Demand]:
    """What a run needs of each pool: of each resource the most that any stage holds."""
    found: dict[str | None, Demand] = {}
    for demands in stage_demands(config):
        for pool in {demand.pool for demand in demands}:
            mine = [demand for demand in demands if demand.pool == pool]
            sums = [sum(getattr(d, name) for d in mine) for name in ("cpus", "gpus", "memory_gib")]
            before = found.get(pool, Demand(pool, 0))
            most = [max(a, b) for a, b in zip(sums, (before.cpus, before.gpus, before.memory_gib), strict=True)]
            largest = max(before.largest, *(d.largest for d in mine))
            found[pool] = Demand(pool, int(most[0]), int(most[1]), most[2], largest)
    return found


def cpus_needed(config: RunConfig) -> int:
    """Logical CPUs that Ray must announce: one for each engine replica, trainer worker, task that reads or feeds."""
    return max(sum(d.cpus for d in demands) for demands in stage_demands(config))


def gpus_needed(config: RunConfig) -> int:
    return max(sum(d.gpus for d in demands) for demands in stage_demands(config))


def memory_needed(config: RunConfig) -> float:
    """GiB of host memory on a single machine, Ray included."""
    return RAY_GIB + max(sum(d.memory_gib for d in demands) for demands in stage_demands(config))


def disk_needed(config: RunConfig, held_gib: float) -> float:
    """GiB that must be free where the run directory lies, which holds some already."""
    return SPARE_DISK_GIB + max(0.0, disk_gib(config) - held_gib)


def shared_memory_needed(config: RunConfig) -> float:
    """GiB in /dev/shm of each node."""
    return SHM_GIB if config.resources.device == "gpu" else 0.0


def require(checks: list[Check], where: str, fix: str) -> None:
    """Refuses what falls short.

    Raises:
        ResourceError: a table of what is needed and what there is.
    """
    if not any(check.short for check in checks):
        return
    width = max(len(check.what) for check in checks)
    lines = [f"{where} cannot hold the run:", f"  {'':<{width}} {'needed':>7} {'there':>7} {'at most':>8}"]
    for c in checks:
        mark = "  <- too little" if c.short else ""
        lines.append(f"  {c.what:<{width}} {c.needed:>7.4g} {c.there:>7.4g} {c.most:>8.4g}{mark}")
    raise ResourceError("\n".join([*lines, fix]))
