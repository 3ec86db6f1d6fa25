"""Tokens, floating-point operations and hours that a run's stages take on given devices, from stated formulas.

forward        2 P FLOPs a token (attention's own, under a tenth at 1,024 tokens, left out)
LoRA training  4 P a token: the backward pass goes through all weights and computes no gradient of them
full training  6 P
checkpointing  2 P more: the forward pass again
sampling       a step makes one token for each sequence of a batch; it takes the longer of reading all weights and
               the batch's KV cache once, and 2 P a sequence
hours          FLOPs / (devices * peak * share), and the starts of engines and workers
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

from proxykd.config import ModelConfig, RunConfig, TrainConfig
from proxykd.data.round_records import round_slice
from proxykd.models.architecture import Architecture, require_architecture
from proxykd.planning.memory_plan import BYTES, kv_bytes


@dataclass(frozen=True)
class Device:
    """One accelerator, or all cores of a machine. Shares say how much of its peak real work gets."""

    name: str
    memory_gib: float
    peak: float
    """Dense FLOPs a second, in bfloat16 on GPUs."""
    bandwidth: float
    """Bytes a second."""
    training_share: float = 0.35
    forward_share: float = 0.5
    bandwidth_share: float = 0.6
    worker_start_s: float = 60.0
    engine_start_s: float = 120.0


GPUS = {
    gpu.name: gpu
    for gpu in (
        Device("a10g-24g", 24, 70e12, 0.6e12),
        Device("l40s-48g", 48, 362e12, 0.86e12),
        Device("a100-40g", 40, 312e12, 1.55e12),
        Device("a100-80g", 80, 312e12, 2.0e12),
        Device("h100-80g", 80, 989e12, 3.35e12),
        Device("h200-141g", 141, 989e12, 4.8e12),
    )
}
"""Their makers' figures."""


@dataclass(frozen=True)
class Text:
    """A corpus in numbers: records, and mean tokens of prompt and completion."""

    records: int
    prompt: float
    completion: float

    @property
    def length(self) -> float:
        return self.prompt + self.completion


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


def this_cpu(memory_gib: float) -> Device:
    """All cores of this machine, their float32 peak measured (half a second).

    The shares are of runs on two cores of an AMD EPYC (Zen 3): benchmarks/plan.py compares.
    """
    import torch

    square = torch.rand(1536, 1536)
    best = min(_seconds(lambda: square @ square) for _ in range(5))
    block = torch.rand(2**25)
    copied = min(_seconds(block.clone) for _ in range(3))
    return Device(
        f"this machine's {torch.get_num_threads()} cores",
        memory_gib,
        peak=2 * 1536**3 / best,
        bandwidth=2 * 4 * 2**25 / copied,
        training_share=0.7,
        forward_share=0.35,
        bandwidth_share=0.6,
        worker_start_s=35.0,
        engine_start_s=45.0,
    )


def estimate(config: RunConfig, text: Text, device: Device) -> list[StageEstimate]:
    """Every stage of a run on devices of one kind, as many as `resources` names.

    Raises:
        ModelError: the size of a model is unknown.
    """
    return _Planner(config, text, device).stages()


class _Planner:
    def __init__(self, config: RunConfig, text: Text, device: Device):
        self._config, self._text, self._device = config, text, device
        self._proxy, self._student = require_architecture(config.proxy), require_architecture(config.student)
        split = config.corpus.split
        rest = text.records * (1 - split.validation - split.test)
        self._validation, self._test = text.records * split.validation, text.records * split.test
        self._warmup, self._distillation = rest * split.warmup, rest * split.distillation
        self._rounds = config.alignment.rounds
        alignment = round(rest * split.alignment)
        self._assisted = self._warmup + alignment
        self._pairs = len(round_slice(1, alignment, config.alignment)) if self._rounds else 0

    def stages(self) -> list[StageEstimate]:
        config, source = self._config, self._config.distillation.source
        found = []
        if config.teacher.local is not None:
            found.append(self._collect(require_architecture(config.teacher.local)))
        if source == "proxy":
            found.append(self._warm_up())
        if source == "proxy" and self._rounds:
            found += [self._sample(), self._align()] if config.alignment.preference else [self._align()]
        if config.uses_proxy:
            found.append(self._score())
        if config.open_teacher is not None:
            found.append(self._complete(require_architecture(config.open_teacher)))
        if source == "assistant":
            found.append(self._assist())
        return [*found, self._distil(), self._evaluate()]

    def _collect(self, teacher: Architecture) -> StageEstimate:
        records = self._text.records
        seconds = self._device.engine_start_s + self._sampling(teacher, records)
        return StageEstimate("collect", records, records * self._text.completion, seconds, self._engines)

    def _warm_up(self) -> StageEstimate:
        """With the validation slice before and after."""
        stage = self._config.warmup
        seconds = self._training(self._config.proxy, stage, self._warmup)
        seconds += 2 * self._forward(self._proxy, self._validation)
        return self._trained("warm-up", self._warmup * stage.epochs, seconds)

    def _sample(self) -> StageEstimate:
        """All rounds, and the engine's starts."""
        starts = self._rounds if self._config.resources.engine_while_training == "stop" else 1
        records = self._rounds * self._pairs
        seconds = starts * self._device.engine_start_s + self._rounds * self._sampling(self._proxy, self._pairs)
        return StageEstimate("sample", records, records * self._text.completion, seconds, self._engines)

    def _align(self) -> StageEstimate:
        """All rounds: the reference's log-probs, training on both sides of each pair, the validation slice."""
        stage = self._config.alignment
        sides = 2 if stage.preference else 1
        seconds = self._forward(self._proxy, (2 * self._pairs if stage.preference else 0) + self._validation)
        seconds += self._training(self._config.proxy, stage, sides * self._pairs)
        records = self._rounds * self._pairs * stage.epochs * sides
        return self._trained("align", records, self._rounds * seconds, self._rounds)

    def _score(self) -> StageEstimate:
        if self._config.score.source == "trainer":
            return self._trained("score", self._distillation, self._forward(self._proxy, self._distillation))
        tokens = self._distillation * self._text.length
        return StageEstimate(
            "score", round(self._distillation), tokens, self._prefill(self._proxy, tokens), self._engines
        )

    def _complete(self, teacher: Architecture) -> StageEstimate:
        """The open teacher's own completions."""
        records = round(self._distillation + (self._assisted if self._config.distillation.source == "assistant" else 0))
        seconds = self._device.engine_start_s + self._sampling(teacher, records)
        return StageEstimate("complete", records, records * self._text.completion, seconds, self._engines)

    def _assist(self) -> StageEstimate:
        """TAKD's assistant, with the open teacher's forward passes."""
        assert self._config.white_box is not None
        stage = self._config.white_box.assistant
        seconds = self._training(self._config.proxy, stage, self._assisted)
        seconds += self._forward(require_architecture(self._config.white_box.teacher), self._assisted * stage.epochs)
        return self._trained("assist", self._assisted * stage.epochs, seconds)

    def _distil(self) -> StageEstimate:
        """With the points of the validation curve, and the forward passes of a teacher that is read as it goes."""
        stage = self._config.distillation
        seconds = self._training(self._config.student, stage, self._distillation)
        seconds += (1 + stage.evaluations) * self._forward(self._student, self._validation)
        if (teacher := self._config.open_teacher) is not None:
            read = self._proxy if stage.source == "assistant" else require_architecture(teacher)
            seconds += self._forward(read, self._distillation * stage.epochs)
        return self._trained("distil", self._distillation * stage.epochs, seconds)

    def _evaluate(self) -> StageEstimate:
        """The test slice under every proxy there is (the base, the warm-up, every round) and both students."""
        proxies = {"proxy": self._rounds + 2, "base": 1, "assistant": 2}.get(self._config.distillation.source, 0)
        seconds = proxies * self._forward(self._proxy, self._test) + 2 * self._forward(self._student, self._test)
        if (teacher := self._config.open_teacher) is not None:
            seconds += self._forward(require_architecture(teacher), self._test)
            proxies += 1
        return self._trained("evaluate", (proxies + 2) * self._test, seconds)

    def _trained(self, stage: str, records: float, seconds: float, starts: int = 1) -> StageEstimate:
        seconds += starts * self._device.worker_start_s
        return StageEstimate(stage, round(records), records * self._text.length, seconds, self._trainers)

    @property
    def _trainers(self) -> int:
        resources = self._config.resources
        return 1 if resources.device == "cpu" else resources.trainer_workers

    @property
    def _engines(self) -> int:
        resources = self._config.resources
        return 1 if resources.device == "cpu" else resources.engine_replicas * resources.engine_tensor_parallel

    def _training(self, model: ModelConfig, stage: TrainConfig, records: float) -> float:
        passes = (4 if model.method == "lora" else 6) + (2 if stage.gradient_checkpointing else 0)
        flops = passes * require_architecture(model).parameters * records * stage.epochs * self._text.length
        return flops / (self._trainers * self._device.peak * self._device.training_share)

    def _forward(self, arch: Architecture, records: float) -> float:
        """By the trainers."""
        return (
            2
            * arch.parameters
            * records
            * self._text.length
            / (self._trainers * self._device.peak * self._device.training_share)
        )

    def _prefill(self, arch: Architecture, tokens: float) -> float:
        """By the engines."""
        return 2 * arch.parameters * tokens / (self._engines * self._device.peak * self._device.forward_share)

    def _sampling(self, arch: Architecture, records: float) -> float:
        resources, device, dtype = self._config.resources, self._device, self._config.engine.dtype
        replicas = 1 if resources.device == "cpu" else resources.engine_replicas
        share = ceil(records / replicas)
        batch = min(resources.engine_max_seqs, share)
        read = arch.parameters * BYTES[dtype] + batch * self._text.length * kv_bytes(arch, dtype)
        devices = self._engines / replicas
        step = max(
            read / (devices * device.bandwidth * device.bandwidth_share),
            batch * 2 * arch.parameters / (devices * device.peak * device.forward_share),
        )
        return self._prefill(arch, records * self._text.prompt) + share / max(batch, 1) * self._text.completion * step


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
