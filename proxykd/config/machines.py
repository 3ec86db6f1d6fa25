"""Where and how visibly a run happens."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from proxykd.config.sections import Dtype, Section


class EngineConfig(Section):
    """vLLM. `merged` puts one adapter at a time into the weights; `lora` holds several (docs/design.md)."""

    adapters: Literal["merged", "lora"] | None = Field(
        None, description="unset, by resources.device: lora on GPUs, merged on CPUs; no result depends on it"
    )
    dtype: Dtype = "bfloat16"
    max_loras: int = Field(4, ge=1)
    max_lora_rank: int = Field(16, ge=1)


class PoolConfig(Section):
    """On a cluster: which nodes hold which part. A node is in a pool by `ray start --labels proxykd-pool=NAME`."""

    engine: str | None = Field(None, description="the proxy's vLLM replicas, and a local teacher's")
    trainer: str | None = Field(None, description="Ray Train workers")
    data: str | None = Field(None, description="Ray Data tasks")


class ResourceConfig(Section):
    """Where a run happens; no result depends on it."""

    device: Literal["cpu", "gpu"] = "cpu"
    trainer_workers: int = Field(1, ge=1)
    trainer_threads: int | None = Field(None, ge=1, description="a worker's on CPUs; unset, its share of the cores")
    parallel: Literal["ddp", "fsdp2"] = "ddp"
    engine_replicas: int = Field(1, ge=1)
    engine_tensor_parallel: int = Field(1, ge=1)
    engine_max_seqs: int = Field(64, ge=1)
    engine_memory_gib: float = Field(1.0, gt=0, description="KV cache on CPU; on GPUs the share below decides")
    engine_gpu_share: float = Field(0.85, gt=0, le=1.0)
    engine_while_training: Literal["keep", "stop"] = Field(
        "keep", description="stop: engine and trainers take the same GPUs in turn, for an engine start every round"
    )
    pools: PoolConfig = PoolConfig()
    micro_batch_tokens: int = Field(2048, ge=8)
    checkpoint_seconds: float = Field(120.0, ge=0, description="between a training stage's checkpoints; 0: each step")
    request_deadline_s: float = Field(600.0, gt=0)
    logical_cpus: int = Field(8, ge=4, description="CPUs that a locally started Ray announces")


class RedisConfig(Section):
    """What is live about a run (no result needs it). Without `url` the run starts a server of its own.

    User and password of one's own server come from $PROXYKD_REDIS_USERNAME and $PROXYKD_REDIS_PASSWORD.
    """

    url: str | None = Field(None, description="redis://host:port or rediss://host:port")

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
    """Experiment trackers, which no result depends on. Their keys and servers come from their own environment."""

    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)
    project: str = Field("proxykd", description="W&B's project, MLflow's experiment")
