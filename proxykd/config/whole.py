"""A run's whole config, and what of it collecting needs."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from proxykd.config.card import CardConfig
from proxykd.config.machines import EngineConfig, RedisConfig, ResourceConfig, TrackingConfig
from proxykd.config.method import (
    AlignmentConfig,
    CorpusConfig,
    DistillationConfig,
    OnPolicyConfig,
    ScoreConfig,
    TrainConfig,
    WhiteBoxConfig,
)
from proxykd.config.sections import ModelConfig, Section
from proxykd.config.teacher import (
    CollectionConfig,
    JudgeConfig,
    QualityConfig,
    TeacherConfig,
    check_asking,
    with_terms_in_place,
)
from proxykd.config.teachings import TEACHINGS, Teaching

WITHOUT_EFFECT = ("collection", "resources", "redis", "tracking", "card", "runs_dir")
"""Sections of a run on which no result depends."""

LEFT_TO_THE_USER = "left_to_the_user"
"""The type of an error about what a shipped config cannot know."""


class RunConfig(Section):
    """What `proxykd run` takes. `name` and the hash of everything that changes results name the run's directory."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    """Names the run: small letters, digits and hyphens."""
    seed: int = 0
    """Seeds every draw: order of records, adapters' first weights, samples, the teacher's requests."""
    runs_dir: str = Field(default_factory=lambda: os.environ.get("PROXYKD_RUNS_DIR", "runs"))
    """A folder that every node sees, or `s3://bucket/prefix`. Unset, `$PROXYKD_RUNS_DIR`, else `runs`."""
    teacher: TeacherConfig = TeacherConfig()
    corpus: CorpusConfig
    quality: QualityConfig = QualityConfig()
    proxy: ModelConfig
    """The model that is aligned to the teacher, by an adapter, and whose distribution the student learns."""
    student: ModelConfig
    """The model that comes out."""
    warmup: TrainConfig = TrainConfig()
    """SFT of the proxy on D_w, equation (1)."""
    alignment: AlignmentConfig = AlignmentConfig()
    score: ScoreConfig = ScoreConfig()
    distillation: DistillationConfig = DistillationConfig()
    sft: TrainConfig | None = None
    """A second student beside the first, by SFT on all of the training text: what the same answers buy without a
    proxy. Unset, there is none.
    """
    white_box: WhiteBoxConfig | None = None
    on_policy: OnPolicyConfig | None = None
    engine: EngineConfig = EngineConfig()
    collection: CollectionConfig = CollectionConfig()
    resources: ResourceConfig = ResourceConfig()
    redis: RedisConfig = RedisConfig()
    tracking: TrackingConfig = TrackingConfig()
    card: CardConfig = CardConfig()

    _terms = model_validator(mode="before")(with_terms_in_place)

    @model_validator(mode="after")
    def _resolve(self) -> Self:
        """What is unset and follows from the rest gets its value, so that a run's config.json says what was used."""
        if self.engine.adapters is None:
            adapters = "lora" if self.resources.device == "gpu" else "merged"
            object.__setattr__(self, "engine", self.engine.model_copy(update={"adapters": adapters}))
        return self

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.corpus.path and not self.corpus.prompts:
            raise PydanticCustomError(
                LEFT_TO_THE_USER,
                "set corpus.path, your text: --set corpus.path=FILE (of a study --set run.corpus.path=FILE), or "
                "corpus.prompts to collect completions",
            )
        if self.corpus.prompts and not self.teacher.can_be_asked:
            raise ValueError("corpus.prompts needs a teacher to ask; set teacher.base_url or teacher.local")
        check_asking(self.teacher, self.collection)
        self._check_templates()
        if self.proxy.method != "lora":
            raise ValueError("proxy.method is 'full'; the proxy is aligned by adapters, set it to 'lora'")
        if self.student.method == "full" and self.student.dtype == "bfloat16":
            raise ValueError(
                f"student.dtype is bfloat16 with method full: most steps of learning_rate "
                f"{self.distillation.learning_rate:g} are below its resolution and would be lost; set "
                f"student.dtype=float32, or student.method=lora"
            )
        if self.teaching.open_teacher:
            self._check_white_box()
        if self.score.method == "drawn":
            self._check_drawn()
        if self.corpus.unlabelled and not (self.teaching.labels and self.teaching.aligned):
            raise ValueError(
                f"corpus.unlabelled is answered by an aligned proxy, and distillation.source "
                f"{self.distillation.source} has none; remove it, or set distillation.source=proxy"
            )
        if self.alignment.task is not None:
            self._check_task()
        if self.sft is not None and not (self.teaching.labels or self.teaching.open_teacher):
            raise ValueError(f"distillation.source {self.distillation.source} is SFT already; leave sft out")
        if self.on_policy is not None:
            self._check_on_policy(self.on_policy)
        if self.student.tokenizer == "own":
            self._check_across()
        if self.corpus.follow and not self.teaching.labels:
            raise ValueError("corpus.follow is for runs that align a proxy; leave it out for other baselines")
        if self.resources.device == "cpu" and self.resources.engine_tensor_parallel > 1:
            raise ValueError(
                f"resources.engine_tensor_parallel is {self.resources.engine_tensor_parallel}, which needs GPUs; set "
                f"resources.device=gpu or use 1"
            )
        if self.resources.torch_compile:
            self._check_compiled()
        self._check_limit("alignment", self.alignment.max_new_tokens)
        return self

    def _check_templates(self) -> None:
        """Open teachers and most students speak as the proxy does: a template of their own would have no effect."""
        taught = {"student": self.student} if self.student.tokenizer == "proxy" else {}
        if self.white_box is not None:
            taught["white_box.teacher"] = self.white_box.teacher
        for name, model in taught.items():
            for key in ("chat_template", "template_date"):
                if (value := getattr(model, key)) != ModelConfig.model_fields[key].default:
                    raise ValueError(
                        f"{name}.{key} is {str(value)!r}, but it speaks as the proxy; remove it, or set proxy.{key}"
                    )
        for name, model in self.models.items():
            if model.tokenizer == "own" and name != "student":
                raise ValueError(f"{name}.tokenizer is 'own', which is for students alone; remove it")

    def _check_compiled(self) -> None:
        assistant = None if self.white_box is None else self.white_box.assistant
        stages = {
            "warmup": self.warmup,
            "alignment": self.alignment,
            "distillation": self.distillation,
            "sft": self.sft,
            "white_box.assistant": assistant,
            "on_policy": self.on_policy,
        }
        for name, stage in stages.items():
            if stage is not None and stage.gradient_checkpointing:
                raise ValueError(
                    f"resources.torch_compile is true, which saves of what layers keep, and "
                    f"{name}.gradient_checkpointing too, by which they keep nothing; set one of them to false"
                )

    def _check_across(self) -> None:
        """What compares whole distributions, or has the proxy's own completions, is for one tokenizer."""
        source, learned = self.distillation.source, self.distillation
        if self.teaching.open_teacher or self.teaching.shift:
            raise ValueError(
                f"student.tokenizer is own, and distillation.source {source} compares whole distributions over one "
                f"vocabulary; set distillation.source=proxy, or choose a student of the proxy's family"
            )
        if self.on_policy is not None and self.on_policy.judge == "proxy" and self.corpus.reasoning == "train":
            raise ValueError(
                "student.tokenizer is own, and the proxy of another tokenizer reads no thoughts in its samples, which "
                "corpus.reasoning train teaches; set on_policy.judge=preference, or leave on_policy out"
            )
        if self.corpus.unlabelled:
            raise ValueError(
                "student.tokenizer is own, and corpus.unlabelled is answered in the proxy's tokens; remove it, or "
                "choose a student of the proxy's family"
            )
        if self.score.method == "drawn" or learned.divergence != "tail":
            raise ValueError(
                f"student.tokenizer is own, whose labels need score.method top_k and distillation.divergence tail, not "
                f"{self.score.method} and {learned.divergence}; leave both out"
            )

    def _check_white_box(self) -> None:
        if self.white_box is None:
            raise ValueError(
                f"distillation.source is {self.distillation.source}, which needs an open teacher; set "
                f"white_box.teacher.source to a model of the student's tokenizer"
            )
        if self.white_box.on_policy and self.resources.parallel == "fsdp2":
            raise ValueError("white_box.on_policy draws from whole models; set resources.parallel=ddp")
        self._check_limit("white_box", self.white_box.max_new_tokens)

    def _check_drawn(self) -> None:
        if self.score.source == "engine":
            raise ValueError(
                "score.method is drawn, but the engine tells the likeliest tokens alone; set score.source=trainer"
            )
        if self.distillation.divergence != "tail":
            raise ValueError(
                f"distillation.divergence is {self.distillation.divergence}, but drawn labels are learned by their "
                f"cross-entropy; set distillation.divergence=tail"
            )
        if self.teaching.shift:
            raise ValueError(
                "score.method is drawn, but a shift needs the proxy's own probabilities; set score.method=top_k"
            )

    def _check_task(self) -> None:
        if not self.teaching.aligned:
            raise ValueError(
                f"alignment.task judges rounds, and distillation.source {self.distillation.source} has none; remove it"
            )
        if self.alignment.min_improvement >= 1:
            raise ValueError(
                f"alignment.min_improvement is {self.alignment.min_improvement:g}, and with alignment.task a share of "
                f"its questions; set it below 1"
            )
        if self.resources.parallel == "fsdp2":
            raise ValueError("alignment.task is answered by whole models; set resources.parallel=ddp")
        if self.corpus.follow:
            raise ValueError(
                "alignment.task asks what nothing has learned from, and corpus.follow may add its questions later; "
                "leave one of them out"
            )

    def _check_on_policy(self, phase: OnPolicyConfig) -> None:
        source = self.distillation.source
        if self.teaching.open_teacher:
            raise ValueError(
                f"on_policy is for students of a black box, and distillation.source is {source}; remove on_policy"
            )
        if phase.judge == "proxy" and not self.teaching.aligned:
            raise ValueError(
                f"on_policy.judge is proxy, which needs an aligned one, and distillation.source is {source}; set "
                f"distillation.source=proxy or on_policy.judge=preference"
            )
        if phase.source == "engine":
            self._check_engine_judge(phase)
        if self.resources.parallel == "fsdp2":
            raise ValueError("on_policy draws from whole models; set resources.parallel=ddp")
        self._check_limit("on_policy", phase.max_new_tokens)

    def _check_engine_judge(self, phase: OnPolicyConfig) -> None:
        if phase.judge != "proxy":
            raise ValueError(
                f"on_policy.source is engine, and on_policy.judge {phase.judge} asks no proxy; leave source out"
            )
        if (apart := self.resources.engine_while_training) != "keep":
            raise ValueError(
                f"on_policy.source is engine, which is asked at every step, and resources.engine_while_training is "
                f"{apart}; set resources.engine_while_training=keep or on_policy.source=trainer"
            )

    def _check_limit(self, section: str, max_new_tokens: int | None) -> None:
        if max_new_tokens is not None and max_new_tokens >= self.corpus.max_length:
            raise ValueError(
                f"{section}.max_new_tokens {max_new_tokens} limits nothing within corpus.max_length "
                f"{self.corpus.max_length}; leave it out for what each prompt leaves, or lower it"
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
        return self.white_box.teacher if self.white_box is not None and self.teaching.open_teacher else None

    @property
    def read_beside_student(self) -> list[ModelConfig]:
        """The frozen models whose distributions the student's loss reads as it trains."""
        if self.teaching.shift:
            return [self.proxy, self.student.model_copy(update={"method": "full"})]
        teacher = self.proxy if self.teaching.assistant else self.open_teacher
        return [] if teacher is None else [teacher]

    @property
    def teaching(self) -> Teaching:
        """What the student learns from."""
        return TEACHINGS[self.distillation.source]

    @property
    def hash8(self) -> str:
        """First 8 hex digits of the SHA-256 of everything that changes results."""
        return self.sha256[:8]

    @property
    def sha256(self) -> str:
        return hashlib.sha256(json.dumps(self.of_results(), sort_keys=True).encode()).hexdigest()

    def of_results(self) -> dict[str, Any]:
        """Everything that changes results, JSON-ready."""
        # How adapters get into the engine follows the device, which a run may change between attempts.
        without = dict.fromkeys(WITHOUT_EFFECT, True) | {"engine": {"adapters"}, "teacher": {"terms"}}
        return self.model_dump(mode="json", exclude=without)

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
    """What `proxykd collect` takes: these keys, in a file of their own or a run's, of which it reads no others."""

    seed: int = 0
    """Seeds the requests, each prompt and sample by one of its own."""
    teacher: TeacherConfig
    collection: CollectionConfig = CollectionConfig()
    quality: QualityConfig = QualityConfig()
    redis: RedisConfig = RedisConfig()

    _terms = model_validator(mode="before")(with_terms_in_place)

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_asking(self.teacher, self.collection)
        return self

    @classmethod
    def of_run(cls, run: RunConfig) -> Self:
        return cls(**{name: getattr(run, name) for name in cls.model_fields})


class CertifyConfig(CollectConfig):
    """What `proxykd certify --judge` takes: the judge is a teacher that is asked which of two answers is better. A
    run's config is one too, with its teacher as the judge.
    """

    judge: JudgeConfig = JudgeConfig()

    @model_validator(mode="after")
    def _check_judge(self) -> Self:
        if self.teacher.samples != 1:
            raise ValueError(
                f"teacher.samples is {self.teacher.samples}, but a judge is asked once a comparison; leave it out, and "
                f"set judge.repeats for how often it is asked again"
            )
        return self
