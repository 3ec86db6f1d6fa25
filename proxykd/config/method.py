"""The method: the corpus and its slices, the stages, the baselines. docs/design.md, The method, defines each."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from proxykd.config.sections import Fraction, ModelConfig, Section

Reasoning = Literal["answer_only", "drop_record", "train"]
Use = Literal["warmup", "alignment", "distillation"]
"""What training text is for: D_w, D_p and D_s."""
USES: tuple[Use, ...] = ("warmup", "alignment", "distillation")
HELD_OUT = ("validation", "test")
ENGINE_TOP_K = 20
"""Likeliest tokens that an engine tells of a position, at most."""


class SplitConfig(Section):
    """Shares of the corpus. `validation` and `test` are cut first; the other three share what is left, and sum to 1
    (with `corpus.whole_text` each of them has all of it).
    """

    validation: Fraction = 0.05
    """Share that judges every round and the student while it trains. With `test`, at most 0.5."""
    test: Fraction = 0.05
    """Share that the report's numbers are of."""
    warmup: Fraction = 0.10
    """D_w: the proxy's warm-up."""
    alignment: Fraction = 0.45
    """D_p: the rounds of the alignment."""
    distillation: Fraction = 0.45
    """D_s: soft labels and the student."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        rest = self.warmup + self.alignment + self.distillation
        if abs(rest - 1.0) > 1e-6:
            raise ValueError(f"warmup + alignment + distillation is {rest:g}; make them sum to 1")
        if self.validation + self.test > 0.5:
            raise ValueError(f"validation + test is {self.validation + self.test:g}; keep it at or below 0.5")
        return self


class CorpusConfig(Section):
    """Either `path` (completions that exist) or `prompts` (to be collected from the teacher).

    [corpus.md](corpus.md) shows the layouts of a row.
    """

    path: str | None = None
    """A file, a folder, a data set of `proxykd collect`, or `hf:NAME[:SPLIT]`, with completions."""
    prompts: str | None = None
    """Where prompts without completions lie, in the forms of `path`: the run asks the teacher for completions first."""
    unlabelled: str | None = None
    """More prompts, in the forms of `prompts`, which the teacher is not asked: the aligned proxy answers them, and the
    student learns its distribution alone there. None may be one of the held-out slices'.
    """
    follow: int | None = Field(None, ge=1)
    """`path` is a data set that grows: begin once it holds so many records, and take what it adds before each round."""
    format: Literal["auto", "messages", "completion", "openorca", "nectar"] = "auto"
    """Layout of a row. `auto` tells it by the row's keys."""
    limit: int | None = Field(None, ge=1)
    """Records that are read at most. Unset, all."""
    max_length: int = Field(1024, ge=8)
    """Tokens of prompt and completion together, in training, sampling and scoring alike."""
    overlong: Literal["drop", "truncate"] = "drop"
    """What becomes of longer records. All are counted."""
    reasoning: Reasoning = "answer_only"
    """Of completions with the teacher's thoughts (`<think>...</think>` at the beginning, or `reasoning_content`): leave
    the thoughts out, drop such records, or train on both ([tokens.md](tokens.md)).
    """
    max_bad_share: float = Field(0.01, ge=0.0, le=1.0)
    """Share of lines that may be unusable, and of records that the chat template may refuse; more end the run before
    any work.
    """
    whole_text: bool = False
    """All training text warms the proxy up, feeds its rounds and teaches the student. Unset, each has its share of
    `split` (the paper's way); the held-out slices are the same either way.
    """
    training_limit: int | None = Field(None, ge=1)
    """Records beside the held-out slices that are used at most, drawn by the seed, prompt by prompt
    ([corpus.md](corpus.md#with-fewer-answers)). Unset, all.
    """
    shard_records: int = Field(512, ge=1)
    """Records a file: of the corpus, of pairs and of soft labels alike. What a death loses is one of them."""
    split: SplitConfig = SplitConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.path and self.prompts:
            raise ValueError("corpus.path and corpus.prompts are both set; set one of them")
        if self.follow and (self.prompts or self.limit):
            raise ValueError("corpus.follow goes with corpus.path alone; leave corpus.prompts and corpus.limit out")
        if self.follow and self.training_limit:
            raise ValueError(
                "corpus.training_limit draws from records that are all there, and corpus.follow lets them grow; leave "
                "one of them out"
            )
        return self

    def slice_for(self, use: Use) -> str:
        """The slice whose records serve a use."""
        return "training" if self.whole_text else use

    def slices_for(self, *uses: Use) -> tuple[str, ...]:
        """The slices of several uses, each once."""
        return tuple(dict.fromkeys(map(self.slice_for, uses)))

    @property
    def slices(self) -> tuple[str, ...]:
        """Every slice that a run has."""
        return (*HELD_OUT, *self.slices_for(*USES))

    @property
    def growing(self) -> tuple[str, ...]:
        """Those that take what a followed data set adds: the warm-up is over by then."""
        return self.slices_for("alignment", "distillation")

    def share_for(self, use: Use) -> float:
        """The share of the training text that serves a use."""
        share: float = getattr(self.split, use)
        return 1.0 if self.whole_text else share


class TrainConfig(Section):
    """A stage of training: Adam without weight decay, for as long as its validation curve says
    ([method.md](method.md#how-long-a-stage-trains)).
    """

    learning_rate: float = Field(1e-5, gt=0)
    """Adam's, at its largest."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the rate goes on from there over the steps of all `epochs`: as it is, or down to 0 on a line or half a
    cosine.
    """
    warmup_share: float = Field(0.0, ge=0.0, lt=1.0)
    """Share of the steps over which the rate first rises to `learning_rate`."""
    epochs: int = Field(1, ge=1)
    """Passes over the stage's records, at most; of the alignment, over each round's."""
    evaluations: int = Field(1, ge=1)
    """Points of the validation curve, evenly over the steps; the last is the end."""
    keep: Literal["best", "last"] = "best"
    """The point of the validation curve whose weights are the stage's result."""
    early_stopping: int | None = Field(None, ge=1)
    """Points in a row without a new best that end the stage, fewer than `evaluations`. Unset, it goes on to the end of
    its epochs.
    """
    global_batch: int = Field(32, ge=1)
    """Records of one optimizer step over all workers, however many micro-batches they fill."""
    gradient_clip: float = Field(1.0, gt=0)
    """Largest norm of a step's gradient; longer ones are scaled to it."""
    gradient_checkpointing: bool = False
    """Keep each decoder layer's input alone and compute the layer again in the backward pass: less memory, the same
    gradients, a third more work.
    """
    grad_norms_every: int = Field(16, ge=1)
    """Steps between measurements of each loss term's own gradient norm, which cost a backward pass a term."""

    @model_validator(mode="after")
    def _check_stopping(self) -> Self:
        if self.early_stopping is not None and self.early_stopping >= self.evaluations:
            raise ValueError(
                f"early_stopping {self.early_stopping} never comes with {self.evaluations} evaluations; set "
                f"evaluations above it"
            )
        return self


class PreferenceConfig(TrainConfig):
    """A stage with an NLL of the chosen completion and DPO of it against a rejected one."""

    beta: float = Field(0.1, gt=0)
    """DPO's: how much a nat of margin counts."""
    nll_reduction: Literal["token_mean", "sequence_sum"] = "token_mean"
    """Unit of the NLL beside DPO: a mean over the global batch's tokens, or sums averaged over its sequences."""


class AlignmentConfig(PreferenceConfig):
    """k rounds of NLL + DPO, equations (3)-(6), each judged by what it changed on validation, or in a task's score
    ([method.md](method.md#how-a-round-is-judged)).
    """

    rounds: int = Field(16, ge=0)
    """k, at most; the alignment ends before where it has converged."""
    preference: bool = True
    """false: rounds of NLL alone, without samples (an ablation)."""
    pairs_per_round: int | None = Field(None, ge=1)
    """Records of D_p that a round takes. Rounds go on from the last one's end, and all over again. Unset, all rounds
    together see D_p once.
    """
    teacher_kl: float = Field(0.0, ge=0)
    """Weight of the KL from the log-probs that a grey box gives away ([collect.md](collect.md#grey-boxes)); 0: they are
    not used.
    """
    max_new_tokens: int | None = Field(None, ge=1)
    """Most tokens of a sample. Unset, all that its own prompt leaves of `corpus.max_length`."""
    truncated_samples: Literal["keep", "drop"] = "keep"
    """What becomes of pairs whose sample ended by length, and so has no stop token."""
    max_similarity: float = Field(1.0, gt=0.0, le=1.0)
    """Pairs whose sides share more of their tokens than this (both ways, counted as often as they occur: ROUGE-1's F)
    are dropped. Equal sides always are.
    """
    task: str | None = None
    """A file of questions that the proxy is asked before and after each round, greedily: their score, in the place of
    the validation NLL, is what promotes or rejects ([method.md](method.md#a-task-score)). Unset, the NLL judges.
    """
    min_improvement: float = Field(0.005, ge=0)
    """Nats a token of validation NLL, or a share of the task's questions; a round that surely improved by less is
    idle.
    """
    patience: int = Field(2, ge=1)
    """Idle rounds in a row that end the alignment."""
    after_rejection: float = Field(0.5, gt=0.0, le=1.0)
    """What each rejected round multiplies the learning rate of all later ones by."""
    parity_records: int = Field(8, ge=1)
    """Completions on which engine and trainer are compared before a round trains."""
    parity_threshold: float | None = Field(None, gt=0)
    """Nats a token by which the two may differ on average. Unset, 0.01 where both compute in float32, else 0.15."""


class ScoreConfig(Section):
    """Soft labels, appendix A.1: the aligned proxy's top-K log-probs with the tail's mass, at every token of D_s; or
    draws from its distribution in their place.
    """

    source: Literal["engine", "trainer"] = "engine"
    """Who computes them: vLLM, or the trainer's own forward pass."""
    method: Literal["top_k", "drawn"] = "top_k"
    """What is kept of a distribution: its K most likely tokens and the tail's mass, or K draws, which take the same
    bytes ([method.md](method.md#drawn-labels)); these by the trainer alone.
    """
    top_k: int = Field(10, ge=1, le=ENGINE_TOP_K)
    """K: tokens that are kept at each position, or draws."""


class DistillationConfig(TrainConfig):
    """Student NLL + alpha * trust * KL, equations (7)-(11), or one of the methods that it is compared with
    ([method.md](method.md#what-it-is-compared-with)).
    """

    source: Literal["proxy", "base", "shift", "none", "white_box", "assistant"] = "proxy"
    """Whose distribution the student learns: the aligned proxy's (Proxy-KD), the unaligned proxy's (an ablation), its
    own before it was taught, moved as alignment moved the proxy (Delta-KD), nobody's (SFT on the teacher's text:
    black-box KD), the open teacher's of `white_box`, or that of an assistant between the two (TAKD).
    """
    alpha: float = Field(100.0, ge=0)
    """Weight of the KL: about 100 with `kl_reduction: sequence_mean`, about 1 with `token_sum`."""
    trust: Literal["sequence_sum", "token_mean", "constant", "none"] = "sequence_sum"
    """What a record's weight follows from: its log-prob by the proxy, summed (the paper's) or a token's mean; 0.5 for
    all; 1 for all.
    """
    kl_reduction: Literal["sequence_mean", "token_sum"] = "sequence_mean"
    """Unit of the KL: a mean over each sequence's tokens, beside an NLL that is a sum over them (the paper's); or both
    terms as means over the global batch's tokens.
    """
    divergence: Literal["tail", "truncated", "proxy_renormalised", "both_renormalised"] = "tail"
    """What becomes of the mass outside the top K: one outcome more (exact), or left out in three ways, for
    comparison.
    """
    across: Literal["aligned", "uld"] = "aligned"
    """How a student with `tokenizer: own` learns the labels: by images and spans of the same bytes, or by sorted
    probabilities alone (universal logit distillation, for comparison).
    """
    span_temperature: float = Field(100.0, ge=1)
    """Of spans of several tokens in `across: aligned`: at 1 the KL of the span against all else, which says little of
    long ones; larger ones reach them all (100 is its authors').
    """
    evaluations: int = Field(4, ge=1)
    """Points of the student's validation curve, evenly over the steps; the last is the end."""
    snapshots: bool = False
    """Write the student at every such point, for curves of benchmark scores."""


class WhiteBoxConfig(Section):
    """The open teacher of the baselines that need one, and how a student learns from it
    ([method.md](method.md#what-it-is-compared-with)). It completes the corpus' prompts itself; nothing of the black-box
    teacher's text is used.
    """

    teacher: ModelConfig
    """The open teacher. It must have the student's tokenizer."""
    divergence: Literal["forward_kl", "reverse_kl", "jsd", "tvd"] = "forward_kl"
    """Between the whole distributions at each token: KL(p to q), KL(q to p), Jensen-Shannon, total variation."""
    temperature: float = Field(1.0, gt=0)
    """Divides both models' logits in the divergence, which is scaled so that its gradient keeps its size."""
    on_policy: bool = False
    """Learn on the student's own completions, drawn as it trains (GKD)."""
    max_new_tokens: int | None = Field(None, ge=1)
    """Most tokens of a completion. Unset, what its prompt leaves of `corpus.max_length`."""
    assistant: TrainConfig = TrainConfig()
    """The assistant's own training on D_w and D_p, where `distillation.source` is `assistant`."""


class OnPolicyConfig(PreferenceConfig):
    """A phase after the distillation in which the student learns from its own completions of D_s's prompts
    ([method.md](method.md#an-on-policy-phase)). Left out, a run has none. With `keep: best` the student stays as it was
    before, where no point of the phase's curve is better.
    """

    judge: Literal["proxy", "preference"] = "proxy"
    """Who judges: the aligned proxy, token by token on samples that the student draws as it trains; or the teacher's
    text, preferred to a sample of the student as it was before the phase (NLL + DPO, after SODA), which needs no proxy.
    """
    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = "reverse_kl"
    """With `judge: proxy`, at each token: KL(p to q), KL(q to p), Jensen-Shannon."""
    source: Literal["trainer", "engine"] = "trainer"
    """Who computes the judging proxy's distributions: a copy beside the trainer, whole ones; or its engine, which tells
    20 tokens of each and the rest's mass, so that what is minimised is a lower bound of the divergence. For a student
    with a tokenizer of its own it is such a bound either way.
    """
    max_new_tokens: int | None = Field(None, ge=1)
    """Most tokens of a sample. Unset, all that its own prompt leaves of `corpus.max_length`."""
    evaluations: int = Field(4, ge=1)
    """Points of the phase's validation curve beside its start, evenly over the steps; the last is the end."""
    drift_window: int = Field(8, ge=1)
    """Steps over whose samples the two bounds below compare means: the latest with the phase's first."""
    max_length_ratio: float = Field(2.0, gt=1.0)
    """Samples on average so many times as long as at first, or as short, end the phase."""
    max_repetition_rise: float = Field(0.1, gt=0.0, le=1.0)
    """Share of a sample's 4-grams that stood in it before: a mean that has risen by more than this ends the phase."""
