"""What a run needs, stage by stage and pool by pool, without loading a model; and the table of what is missing."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from proxykd.config import ModelConfig, RunConfig
from proxykd.errors import ResourceError
from proxykd.models.architecture import architecture
from proxykd.planning.memory_plan import disk_gib, file_work_gib, footprints, gathered_gib

DATA_CPUS = 2
RAY_GIB = 1.5
PROCESS_GIB = 1.0
"""Of a Ray worker that has imported torch and transformers or vLLM, beside what it holds of models."""
SPARE_DISK_GIB = 2.0
SHM_GIB = 1.0
"""Shared memory of a node whose GPUs work together. (Where it is small, Ray's object store takes a disk.)"""


@dataclass(frozen=True)
class Demand:
    """What a stage holds of one pool of nodes (None: any node) while it runs. `memory_gib` is the host's."""

    pool: str | None
    cpus: int
    gpus: int = 0
    memory_gib: float = 0.0
    largest: int = 0
    """GPUs that must be on one node: an engine replica's."""


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


def stage_demands(config: RunConfig) -> dict[str, list[Demand]]:
    """What each stage holds at once."""
    resources = config.resources
    host, known = _host_memory(config), _known(config)
    gpus = resources.engine_tensor_parallel if resources.device == "gpu" else 0
    replicas, pools = resources.engine_replicas, resources.pools
    workers = resources.trainer_workers
    gpu_workers = workers if resources.device == "gpu" else 0

    def engine(what: str, count: int) -> Demand:
        merged = known and what == "proxy" and config.engine.adapters == "merged"
        memory = host[f"engine, {what}"] + (file_work_gib(config.proxy, config.engine.dtype) if merged else 0)
        return Demand(pools.engine, count, count * gpus, count * memory, gpus)

    def trainer(what: str, trained: ModelConfig | None = None) -> Demand:
        gathered = gathered_gib(trained, config) if known and trained is not None else 0
        return Demand(pools.trainer, workers, gpu_workers, workers * host[f"trainer, {what}"] + gathered)

    data = Demand(pools.data, DATA_CPUS, memory_gib=DATA_CPUS * PROCESS_GIB / 2)
    made = max((file_work_gib(model, model.dtype) for model in config.models.values()), default=0) if known else 0
    found = {"models": [Demand(None, 0, memory_gib=PROCESS_GIB + made)]}
    if config.teacher.local is not None:
        found["collect"] = [engine("sealed teacher", 1)]
    if config.uses_proxy:
        proxy, training = engine("proxy", replicas), trainer("proxy", config.proxy)
        kept = [proxy] if resources.engine_while_training == "keep" else []
        if config.distillation.source == "proxy":
            found |= {"warmup": [training, data], "align": [training, data, *kept]}
            found |= {"sample": [proxy, data]} if config.alignment.preference else {}
        found["score"] = [proxy, data] if config.score.source == "engine" else [trainer("proxy"), *kept]
    if config.open_teacher is not None:
        found["complete"] = [engine("open teacher", replicas), data]
    if config.distillation.source == "assistant":
        found["assist"] = [trainer("assistant", config.proxy), data]
    sealed = config.teacher.local is not None
    evaluated = trainer("evaluation" if sealed else "proxy" if config.uses_proxy else "student")
    return found | {"distil": [trainer("student", config.student), data], "evaluate": [evaluated]}


def pool_demands(config: RunConfig) -> dict[str | None, Demand]:
    """What a run needs of each pool: of each resource the most that any stage holds."""
    found: dict[str | None, Demand] = {}
    for demands in stage_demands(config).values():
        for pool in {demand.pool for demand in demands}:
            mine = [demand for demand in demands if demand.pool == pool]
            sums = [sum(getattr(d, name) for d in mine) for name in ("cpus", "gpus", "memory_gib")]
            before = found.get(pool, Demand(pool, 0))
            most = [max(a, b) for a, b in zip(sums, (before.cpus, before.gpus, before.memory_gib), strict=True)]
            largest = max(before.largest, *(d.largest for d in mine))
            found[pool] = Demand(pool, int(most[0]), int(most[1]), most[2], largest)
    return found


def cpus_needed(config: RunConfig) -> int:
    """Logical CPUs that Ray must announce: one an engine replica and a trainer worker, and two for Ray Data."""
    return max(sum(d.cpus for d in demands) for demands in stage_demands(config).values())


def gpus_needed(config: RunConfig) -> int:
    return max(sum(d.gpus for d in demands) for demands in stage_demands(config).values())


def memory_needed(config: RunConfig) -> float:
    """GiB of host memory on a single machine, Ray included."""
    return RAY_GIB + max(sum(d.memory_gib for d in demands) for demands in stage_demands(config).values())


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


def _host_memory(config: RunConfig) -> dict[str, float]:
    """GiB of the host's memory that one process of each kind holds. With GPUs, weights pass through the page cache."""
    if not _known(config) or config.resources.device == "gpu":
        return defaultdict(lambda: PROCESS_GIB if config.resources.device == "cpu" else 4 * PROCESS_GIB)
    return {f.what: PROCESS_GIB + f.total for f in footprints(config)}


def _known(config: RunConfig) -> bool:
    return all(architecture(model) for model in config.models.values())
