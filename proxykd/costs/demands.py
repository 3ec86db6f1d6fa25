"""What is held of a cluster at once, as stages ask for it: processes with their pool, CPUs, GPUs and host memory."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

from proxykd.config import ModelConfig, RunConfig
from proxykd.costs.memory_plan import BYTES, GIB, file_work_gib, footprints, gathered_gib
from proxykd.models.architecture import architecture, require_architecture

READERS = 2
PROCESS_GIB = 1.0
"""Of a Ray worker that has imported torch and transformers or vLLM, beside what it holds of models."""


@dataclass(frozen=True)
class Demand:
    """What is held of one pool of nodes (None: any node). `memory_gib` is the host's."""

    pool: str | None
    cpus: int
    gpus: int = 0
    memory_gib: float = 0.0
    largest: int = 0
    """GPUs that must be on one node: an engine replica's."""


class ProcessDemands:
    """The Demand of each process that a run's config has while a stage runs."""

    def __init__(self, config: RunConfig):
        self.config = config
        self._known = all(architecture(model) for model in config.models.values())
        self._host = self._host_memory()

    def engine(self, what: str, replicas: int | None = None) -> Demand:
        """`what` is a footprint's name without "engine, "; all replicas of the config, or so many."""
        config, resources = self.config, self.config.resources
        gpus = resources.engine_tensor_parallel if resources.device == "gpu" else 0
        count = resources.engine_replicas if replicas is None else replicas
        merged = self._known and what == "proxy" and config.engine.adapters == "merged"
        memory = self._host[f"engine, {what}"] + (file_work_gib(config.proxy, config.engine.dtype) if merged else 0)
        return Demand(resources.pools.engine, count, count * gpus, count * memory, gpus)

    def trainer(self, what: str, trained: ModelConfig | None = None) -> Demand:
        """`what` is a footprint's name without "trainer, "; with the memory that gathers what is `trained`."""
        resources = self.config.resources
        workers = resources.trainer_workers
        gpus = workers if resources.device == "gpu" else 0
        gathered = gathered_gib(trained, self.config) if self._known and trained is not None else 0
        return Demand(resources.pools.trainer, workers, gpus, workers * self._host[f"trainer, {what}"] + gathered)

    @property
    def readers(self) -> Demand:
        """Ray Data's two tasks, which read for the trainers."""
        return self._tasks(READERS)

    @property
    def feeders(self) -> Demand:
        """The tasks that ask an engine, one for each of its replicas."""
        return self._tasks(self.config.resources.engine_replicas)

    def _tasks(self, count: int) -> Demand:
        return Demand(self.config.resources.pools.data, count, memory_gib=count * PROCESS_GIB / 2)

    @property
    def models(self) -> Demand:
        """One process that makes the run's models ready, one after the other."""
        models = self.config.models.values()
        made = max((file_work_gib(model, model.dtype) for model in models), default=0) if self._known else 0
        return Demand(None, 0, memory_gib=PROCESS_GIB + made)

    @property
    def kept_engine(self) -> list[Demand]:
        """The proxy's engine beside training, where something is sampled from it: all of it where the config keeps it
        up; where it sleeps, its processes, with the weights in the host's memory."""
        config, resources = self.config, self.config.resources
        sampled = (config.alignment.rounds and config.alignment.preference) or config.corpus.unlabelled
        if not sampled or resources.engine_while_training == "stop":
            return []
        engine = self.engine("proxy")
        if resources.engine_while_training == "keep":
            return [engine]
        parameters = require_architecture(config.proxy).parameters if self._known else 0
        weights = resources.engine_replicas * parameters * BYTES[config.engine.dtype] / GIB
        return [replace(engine, gpus=0, largest=0, memory_gib=engine.memory_gib + weights)]

    def _host_memory(self) -> dict[str, float]:
        """GiB of the host that one process of each kind holds. With GPUs, weights pass through the page cache."""
        device = self.config.resources.device
        if not self._known or device == "gpu":
            return defaultdict(lambda: PROCESS_GIB if device == "cpu" else 4 * PROCESS_GIB)
        return {f.what: PROCESS_GIB + f.total for f in footprints(self.config)}
