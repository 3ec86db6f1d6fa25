"""Where and how visibly a run happens."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from proxykd.config.sections import SLOT_RANKS, Dtype, Section

LORA_SLOTS = 4
"""Adapters that an engine with `adapters: lora` holds on its device at once; others take their place in turn."""


def lora_slot_rank(rank: int) -> int:
    """The smallest rank of those that vLLM has slots for and that holds an adapter of `rank`."""
    return next(slot for slot in SLOT_RANKS if slot >= rank)


class EngineConfig(Section):
    """vLLM, which samples from the proxy, scores with it and serves it."""

    adapters: Literal["merged", "lora"] | None = None
    """How adapters reach the engine. `merged`: one at a time in the weights, at full speed. `lora`: several at once.
    Unset, `lora` on GPUs and `merged` on CPUs; `proxykd config show` and config.json say which it is. No result
    depends on it.
    """
    dtype: Dtype = "bfloat16"
    """Type of the engine's weights and of its KV cache."""


class PoolConfig(Section):
    """On a cluster: which nodes hold which part ([cluster.md](cluster.md#pools)). A node joins the pool NAME by
    `ray start --labels proxykd-pool=NAME`.
    """

    engine: str | None = None
    """Pool of the vLLM replicas: the proxy's, and a local teacher's. Unset, any node."""
    trainer: str | None = None
    """Pool of the Ray Train workers. Unset, any node."""
    data: str | None = None
    """Pool of the tasks that read, tokenise and feed the engine. Unset, any node."""


class ResourceConfig(Section):
    """Where a run happens; no result depends on it. `proxykd config check` prints what a config needs, and
    [cluster.md](cluster.md) says how large a machine to take.
    """

    device: Literal["cpu", "gpu"] = "cpu"
    """What trains and what the engine runs on."""
    trainer_workers: int = Field(1, ge=1)
    """Ray Train workers. On GPUs, each has one."""
    trainer_threads: int | None = Field(None, ge=1)
    """Threads of one worker on CPUs. Unset, its share of the cores. 1 leaves the other cores to other work and costs a
    small model little (`python benchmarks/threads.py`, two quiet cores: 13.9 ms a step by one thread and 10.9 by two at
    0.15 M parameters, 534 and 302 at 12 M).
    """
    parallel: Literal["ddp", "fsdp2"] = "ddp"
    """`ddp`: every worker holds the model. `fsdp2`: its layers are sharded over the workers."""
    engine_replicas: int = Field(1, ge=1)
    """vLLM replicas."""
    engine_tensor_parallel: int = Field(1, ge=1)
    """GPUs a replica."""
    engine_max_seqs: int = Field(64, ge=1)
    """Sequences that a replica works at together, at most."""
    engine_rows_in_flight: int | None = Field(None, ge=1)
    """Rows that the run has with a replica at once, in calls of up to 8: at work, waiting for their turn, or answered
    and waiting for their call. Unset, three times `engine_max_seqs`: so no place is empty (`python -m benchmarks.fed`).
    """
    engine_memory_gib: float = Field(1.0, gt=0)
    """GiB of a replica's KV cache on CPUs, rounded up to whole ones; on GPUs `engine_gpu_share` decides."""
    engine_gpu_share: float = Field(0.85, gt=0, le=1.0)
    """Share of a GPU's memory that a replica takes for weights and KV cache."""
    engine_while_training: Literal["keep", "stop", "sleep"] = "keep"
    """`keep`: the engine stays up for all rounds. `stop`: engine and trainers take the same GPUs in turn, for an engine
    start every round. `sleep`: the same, but the engine stays up and its weights wait in the host's memory; on GPUs
    that the run has to itself.
    """
    pools: PoolConfig = PoolConfig()
    micro_batch_tokens: int = Field(2048, ge=8)
    """Tokens of one forward pass in training, those of a prompt that two completions share once: what memory is needed
    follows from it. No gradient depends on it.
    """
    torch_compile: bool = False
    """Layers in training are compiled by torch.compile. Their activations take less memory, every stage begins later by
    the time of compiling, and on CPUs a step takes as long as without
    ([performance.md](performance.md#compiled-layers)).
    """
    checkpoint_seconds: float = Field(120.0, ge=0)
    """Seconds between a training stage's checkpoints; 0: one each step."""
    request_deadline_s: float = Field(600.0, gt=0)
    """Seconds that a call of the engine may take, be it the run's own or a client's."""
    logical_cpus: int = Field(8, ge=4)
    """CPUs that a locally started Ray announces, whatever the machine has: processes that wait for each other share two
    cores well enough.
    """

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.engine_while_training == "sleep" and self.device == "cpu":
            raise ValueError(
                "resources.engine_while_training is sleep, by which vLLM gives GPU memory back, and resources.device "
                "is cpu; set engine_while_training=keep or stop"
            )
        if self.engine_while_training == "sleep" and self.pools.engine != self.pools.trainer:
            raise ValueError(
                f"resources.engine_while_training is sleep, for engine and trainers on the same GPUs, and their pools "
                f"are {self.pools.engine} and {self.pools.trainer}; name one pool for both, or set "
                f"engine_while_training=keep"
            )
        return self

    @property
    def rows_in_flight(self) -> int:
        """What `engine_rows_in_flight` comes to."""
        return self.engine_rows_in_flight or 3 * self.engine_max_seqs


class RedisConfig(Section):
    """What is live about a run, which no result needs ([runs.md](runs.md#redis)). User and password of a server of your
    own come from `$PROXYKD_REDIS_USERNAME` and `$PROXYKD_REDIS_PASSWORD`.
    """

    url: str | None = None
    """`redis://host:port` or `rediss://host:port`. Unset, the run starts a server of its own."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.url and "@" in self.url:
            raise ValueError(
                "redis.url holds credentials, which a run directory would keep; set $PROXYKD_REDIS_USERNAME and "
                "$PROXYKD_REDIS_PASSWORD instead"
            )
        if self.url and not self.url.startswith(("redis://", "rediss://")):
            raise ValueError(f"redis.url is {self.url!r}; write redis://host:port or rediss://host:port")
        return self


class TrackingConfig(Section):
    """Experiment trackers, which no result depends on. Their keys and servers come from their own environment
    ([dashboard.md](dashboard.md)).
    """

    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)
    """Who is told. TensorBoard's files lie in the run directory."""
    project: str = "proxykd"
    """W&B's project, MLflow's experiment."""
