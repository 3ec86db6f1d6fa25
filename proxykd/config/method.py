"""The method: the corpus and its slices, the stages, the baselines. docs/design.md, The method, defines each."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from proxykd.config.sections import Fraction, ModelConfig, Section

Reasoning = Literal["answer_only", "drop_record", "train"]


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
    reasoning: Reasoning = Field(
        "answer_only",
        description="of completions with the teacher's thoughts (<think>...</think> at the beginning, or "
        "reasoning_content): leave the thoughts out, drop such records, or train on both",
    )
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
    """One training stage: Adam, constant learning rate, no weight decay (docs/design.md, Defaults)."""

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
    pairs_per_round: int | None = Field(
        None, ge=1, description="default: |D_p| / rounds; rounds go on from the last one's end, and all over again"
    )
    beta: float = Field(0.1, gt=0)
    nll_reduction: Literal["token_mean", "sequence_sum"] = "token_mean"
    teacher_kl: float = Field(
        0.0, ge=0, description="weight of the KL from the log-probs that a grey box gives away; 0: they are not used"
    )
    max_new_tokens: int | None = Field(
        None, ge=1, description="most tokens of a sample; default: all that its own prompt leaves of corpus.max_length"
    )
    truncated_samples: Literal["keep", "drop"] = Field(
        "keep", description="pairs whose sample ended by length, and so has no stop token"
    )
    min_improvement: float = Field(
        0.005, description="nats a token of validation NLL; a round that surely improved it by less is idle"
    )
    patience: int = Field(2, ge=1, description="idle rounds in a row that end the alignment")
    reject_above: float = Field(0.05, description="sure rise of validation NLL (nats a token) that rejects a round")
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
    """The open teacher of the baselines that need one, and how a student learns from it (docs/method.md).

    It completes the corpus' prompts itself; nothing of the black-box teacher's text is used.
    """

    teacher: ModelConfig
    divergence: Literal["forward_kl", "reverse_kl", "jsd", "tvd"] = "forward_kl"
    temperature: float = Field(1.0, gt=0)
    on_policy: bool = Field(False, description="on the student's own completions, drawn as it trains (GKD)")
    max_new_tokens: int | None = Field(
        None, ge=1, description="most tokens of a completion; default: what its prompt leaves of corpus.max_length"
    )
    assistant: TrainConfig = TrainConfig()
