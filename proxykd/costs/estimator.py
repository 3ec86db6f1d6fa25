"""Seconds that training, forward passes and sampling take on given devices, from stated formulas.

forward        2 P FLOPs a token (attention's own, under a tenth at 1,024 tokens, left out)
LoRA training  4 P a token: the backward pass goes through all weights and computes no gradient of them
full training  6 P
checkpointing  2 P more: the forward pass again
sampling       a step makes one token for each sequence of a batch; it takes the longer of reading all weights and
               the batch's KV cache once, and 2 P a sequence
hours          FLOPs / (devices * peak * share), and the starts of engines and workers; the trainers' by the share of
               their time that goes into tokens, the engines' by that of their places (proxykd/costs/occupancy.py)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from itertools import cycle, islice
from math import ceil

from proxykd.config import ModelConfig, RunConfig, TrainConfig, Use
from proxykd.costs.devices import Device
from proxykd.costs.memory_plan import BYTES, kv_bytes
from proxykd.costs.occupancy import Window, engines_share, log_normal, trainers_share
from proxykd.data.round_records import round_slice
from proxykd.models.architecture import Architecture, require_architecture

SAMPLED = 4096
"""Records that stand for all of a corpus."""
STEPS, ROWS = 64, 2**16
"""Global batches and rows that a simulation goes through at most. Of more rows less is the end, where few work."""


@dataclass(frozen=True)
class Text:
    """A corpus in numbers: records, and mean tokens of prompt and completion."""

    records: int
    prompt: float
    completion: float
    unlabelled: int = 0
    """Prompts without the teacher's answers, beside the records."""
    questions: int = 0
    answers: int = 0
    """Of the task: questions, and the tokens of all answers at most."""
    sample: tuple[tuple[int, int], ...] = ()
    """Tokens of prompt and completion of records that stand for all. Empty, they are drawn with the means."""

    @cached_property
    def lengths(self) -> list[tuple[int, int]]:
        if self.sample:
            return list(self.sample)
        prompts, completions = log_normal(self.prompt, SAMPLED, 0), log_normal(self.completion, SAMPLED, 1)
        return list(zip(prompts, completions, strict=True))

    @property
    def length(self) -> float:
        return self.prompt + self.completion

    @property
    def pair(self) -> float:
        """Tokens of a pair, two completions behind one prompt, over those of a record."""
        return (self.prompt + 2 * self.completion) / self.length


@dataclass(frozen=True)
class StageEstimate:
    """One stage (all rounds of a step together): what it goes through, and for how long on how many devices."""

    stage: str
    records: int
    tokens: float
    seconds: float
    devices: int

    @property
    def hours(self) -> float:
        return self.seconds / 3600


class Estimator:
    """The formulas for one config on devices of one kind, as many as `resources` names."""

    def __init__(self, config: RunConfig, text: Text, device: Device):
        """Raises:
        ModelError: the size of a model is unknown.
        """
        self.config, self.text, self.device = config, text, device
        self.proxy, self.student = require_architecture(config.proxy), require_architecture(config.student)
        corpus, split = config.corpus, config.corpus.split
        rest = text.records * (1 - split.validation - split.test)
        if corpus.training_limit is not None:
            rest = min(rest, corpus.training_limit)
        self.validation, self.test = text.records * split.validation, text.records * split.test
        self.warmup, self.distillation = rest * corpus.share_for("warmup"), rest * corpus.share_for("distillation")
        self.alignment = round(rest * corpus.share_for("alignment"))
        """Records that serve each use."""
        self.unlabelled = text.unlabelled
        self._busy = cache(self._trainers_share)
        rounds = config.alignment.rounds
        self.pairs = len(round_slice(1, self.alignment, config.alignment)) if rounds else 0
        """Records of a round."""

    def serving(self, *uses: Use) -> float:
        """Records that serve any of these uses, each counted once."""
        of_slices: dict[str, float] = {self.config.corpus.slice_for(use): getattr(self, use) for use in uses}
        return sum(of_slices.values())

    def trained(
        self, stage: str, records: float, seconds: float, starts: int = 1, pairs: bool = False
    ) -> StageEstimate:
        """Work of the trainers, whose workers start so many times; the records may be the two sides of `pairs`."""
        seconds += starts * self.device.worker_start_s
        tokens = records * self.text.length * (self.text.pair / 2 if pairs else 1)
        return StageEstimate(stage, round(records), tokens, seconds, self.trainers)

    def sampled(self, stage: str, arch: Architecture, records: int, starts: int = 1, times: int = 1) -> StageEstimate:
        """Completions that the engines draw, of so many records so many times; the engines start so often."""
        seconds = starts * self.device.engine_start_s + times * self.sampling(arch, records)
        return StageEstimate(stage, times * records, times * records * self.text.completion, seconds, self.engines)

    def scored(self, stage: str, arch: Architecture, records: float) -> StageEstimate:
        """Log-probs that the engines give, which are up."""
        tokens = records * self.text.length
        return StageEstimate(stage, round(records), tokens, self._prefill(arch, tokens), self.engines)

    @property
    def trainers(self) -> int:
        resources = self.config.resources
        return 1 if resources.device == "cpu" else resources.trainer_workers

    @property
    def engines(self) -> int:
        resources = self.config.resources
        return 1 if resources.device == "cpu" else resources.engine_replicas * resources.engine_tensor_parallel

    def training(self, model: ModelConfig, stage: TrainConfig, records: float) -> float:
        """Seconds of all epochs."""
        passes = (4 if model.method == "lora" else 6) + (2 if stage.gradient_checkpointing else 0)
        flops = passes * require_architecture(model).parameters * records * stage.epochs * self.text.length
        share = self.device.training_share if model.method == "lora" else self.device.full_training_share
        return flops / (self.trainers * self.device.peak * share * self._busy(stage.global_batch))

    def beside_sft(self) -> tuple[float, float]:
        """What a round and what labels with distillation cost over SFT of the same model on the same records, one epoch
        each and without starts: the rows of the paper's Table 3."""
        config, pairs, sides = self.config, self.pairs, self.text.pair
        warmup, alignment, distillation = config.warmup, config.alignment, config.distillation
        sft = self.training(config.proxy, warmup, pairs) / warmup.epochs
        trained = self.training(config.proxy, alignment, sides * pairs) / alignment.epochs
        of_round = (self.sampling(self.proxy, pairs) + self.forward(self.proxy, sides * pairs) + trained) / sft
        labels = self.forward(self.proxy, pairs)
        if config.score.source == "engine":
            labels = self._prefill(self.proxy, pairs * self.text.length)
        student = self.training(config.student, distillation, pairs) / distillation.epochs
        return of_round, 1 + labels / student

    def _trainers_share(self, batch: int) -> float:
        """The share of the trainers' time that goes into tokens, at global batches of so many records."""
        if self.trainers == 1:
            return 1.0
        lengths = [prompt + completion for prompt, completion in self.text.lengths]
        rows = list(islice(cycle(lengths), min(max(len(lengths) // batch, 1), STEPS) * batch))
        batches = [rows[start : start + batch] for start in range(0, len(rows), batch)]
        return trainers_share(batches, self.config.resources.micro_batch_tokens, self.trainers)

    def forward(self, arch: Architecture, records: float) -> float:
        """Seconds of the trainers."""
        flops = 2 * arch.parameters * records * self.text.length
        return flops / (self.trainers * self.device.peak * self.device.training_share)

    def drawing(self, model: ModelConfig, stage: TrainConfig, records: float) -> float:
        """Seconds in which the trainers draw a completion for every record of all epochs, a global batch at a time."""
        return stage.epochs * self._drawn(model, stage, records, records * self.text.completion)

    def asking(self) -> float:
        """Seconds in which the trainers have the proxy answer the task's questions once, all at full length."""
        stage = self.config.alignment
        return self._drawn(self.config.proxy, stage, self.text.questions, self.text.answers)

    def _drawn(self, model: ModelConfig, stage: TrainConfig, records: float, tokens: float) -> float:
        """So many tokens of so many records, a global batch at a time."""
        arch, device, dtype = require_architecture(model), self.device, model.dtype
        batch = ceil(min(stage.global_batch, max(records, 1)) / self.trainers)
        read = arch.parameters * BYTES[dtype] + batch * self.text.length * kv_bytes(arch, dtype)
        step = max(
            read / (device.bandwidth * device.bandwidth_share),
            batch * 2 * arch.parameters / (device.peak * device.training_share),
        )
        return tokens / (batch * self.trainers) * step

    def sampling(self, arch: Architecture, records: float) -> float:
        """Seconds of the engines."""
        resources, device, dtype = self.config.resources, self.device, self.config.engine.dtype
        replicas = 1 if resources.device == "cpu" else resources.engine_replicas
        batch = min(resources.engine_max_seqs, ceil(records / replicas))
        if not batch:
            return 0.0
        window = Window.of_rows(resources.rows_in_flight)
        rows = [completion for _, completion in islice(cycle(self.text.lengths), min(ceil(records), ROWS))]
        busy = engines_share(rows, Window(replicas * window.calls, window.rows_a_call), replicas, batch)
        read = arch.parameters * BYTES[dtype] + batch * self.text.length * kv_bytes(arch, dtype)
        devices = self.engines / replicas
        step = max(
            read / (devices * device.bandwidth * device.bandwidth_share),
            batch * 2 * arch.parameters / (devices * device.peak * device.forward_share),
        )
        steps = records * self.text.completion / (replicas * batch * busy)
        return self._prefill(arch, records * self.text.prompt) + steps * step

    def _prefill(self, arch: Architecture, tokens: float) -> float:
        return 2 * arch.parameters * tokens / (self.engines * self.device.peak * self.device.forward_share)
