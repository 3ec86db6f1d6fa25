"""Memory that a run's processes hold on their devices, and the run directory on its disk, from stated formulas.

P parameters, p LoRA's, b bytes of a weight, S workers that share the weights (fsdp2) or 1, t padded tokens of a
micro-batch, L layers, H hidden, I intermediate, Q and KV the widths of queries and keys, r LoRA's rank, V vocabulary.

    weights        P b / S, and two whole layers more where sharded (one computes while the next arrives)
    training       lora: (4 + 4 + 8) p / S    gradient and Adam's two moments beside the float32 adapter
                   full: 3 P b / S, and 4 V H for the head's gradient in float32
    activations    L t k, with k bytes a token and layer as autograd keeps them (torch 2.13, Llama):
                     float32  full 24 H + 16 I + 8 Q + 8 KV + 22     lora 16 H + 16 I + 8 Q + 8 KV + 22 + 28 r
                     bfloat16 full 16 H +  8 I + 4 Q + 4 KV + 22     lora 28 H + 10 I + 8 Q + 4 KV + 22 + 28 r
                   with gradient checkpointing: L t b H, and k t for the one layer in hand
    logits         three chunks of the head in float32 (head.py)
    KV cache       2 L KV b a token, for max_seqs sequences of max_length, shared by tensor parallel devices
    engine logits  two float32 copies of [tokens of a batch, V]: prompt log-probs (vLLM)
"""

from __future__ import annotations

from dataclasses import dataclass

from proxykd.architecture import Architecture, architecture, require_architecture
from proxykd.config import ModelConfig, RunConfig, TrainConfig

GIB = 2**30
BYTES = {"float32": 4, "bfloat16": 2}
ACTIVATIONS = {
    ("float32", "full"): (24, 16, 8, 8),
    ("float32", "lora"): (16, 16, 8, 8),
    ("bfloat16", "full"): (16, 8, 4, 4),
    ("bfloat16", "lora"): (28, 10, 8, 4),
}
"""Bytes a token and layer for each unit of H, I, Q and KV."""
LOGITS = 3 * 40 * 2**20
"""Three chunks of head.CHUNK_BYTES, which this module must not import: torch comes with it."""
ENGINE_BATCH_TOKENS = 2048
SOFT_LABEL_BYTES = 70
"""A token's, on disk: ten ids and log-probs, the tail, the token's own."""


@dataclass(frozen=True)
class Footprint:
    """What one process holds on its device, in GiB."""

    what: str
    processes: int
    parts: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.parts.values())


def kept_for_backward(arch: Architecture, model: ModelConfig) -> float:
    """Bytes that autograd keeps for one token of one layer."""
    hidden, intermediate, query, kv = ACTIVATIONS[model.dtype, model.method]
    kept = hidden * arch.hidden + intermediate * arch.intermediate + query * arch.query_width + kv * arch.kv_width + 22
    return kept + (28 * model.lora.rank if model.method == "lora" else 0)


def trainer_footprint(
    what: str,
    model: ModelConfig,
    stages: tuple[TrainConfig, ...],
    config: RunConfig,
    teacher: ModelConfig | None = None,
) -> Footprint:
    """One Ray Train worker that trains `model`, in the most demanding of `stages`; `teacher` is held beside it."""
    arch, resources = require_architecture(model), config.resources
    size = BYTES[model.dtype]
    sharded = resources.parallel == "fsdp2" and resources.trainer_workers > 1
    shards = resources.trainer_workers if sharded else 1
    weights = arch.parameters * size / shards + (2 * arch.layer_linear * size if sharded else 0)
    if model.method == "lora":
        training = 16 * arch.lora_parameters(model.lora.rank) / shards
    else:
        training = 3 * arch.parameters * size / shards + 4 * arch.head
    tokens, layer = resources.micro_batch_tokens, kept_for_backward(arch, model)
    activations = max(
        tokens * (arch.layers * size * arch.hidden + layer if stage.gradient_checkpointing else arch.layers * layer)
        for stage in stages
    )
    parts = {"weights": weights, "training": training, "activations": activations, "logits": LOGITS}
    if teacher is not None:
        parts["teacher"] = require_architecture(teacher).parameters * BYTES[teacher.dtype] / shards
    return Footprint(what, resources.trainer_workers, {name: value / GIB for name, value in parts.items()})


def kv_bytes(arch: Architecture, dtype: str) -> int:
    """Of one token in the KV cache, over all devices of an engine."""
    return 2 * arch.layers * arch.kv_width * BYTES[dtype]


def engine_footprint(what: str, model: ModelConfig, config: RunConfig) -> Footprint:
    """One device of an engine that never has to wait for room in its KV cache."""
    arch, resources, dtype = require_architecture(model), config.resources, config.engine.dtype
    devices = resources.engine_tensor_parallel
    if resources.device == "cpu":
        cache = resources.engine_memory_gib * GIB  # what vLLM is told to take
    else:
        cache = resources.engine_max_seqs * config.corpus.max_length * kv_bytes(arch, dtype) / devices
    adapters = 0.0
    if config.engine.adapters == "lora":
        adapters = config.engine.max_loras * BYTES[dtype] * arch.lora_parameters(config.engine.max_lora_rank) / devices
    logits = 2 * 4 * max(ENGINE_BATCH_TOKENS, config.corpus.max_length + 1) * arch.vocabulary / devices
    weights = arch.parameters * BYTES[dtype] / devices
    parts = {"weights": weights, "adapters": adapters, "KV cache": cache, "logits": logits}
    return Footprint(what, resources.engine_replicas * devices, {name: v / GIB for name, v in parts.items()})


def footprints(config: RunConfig) -> list[Footprint]:
    """Every process of a run that holds a model, at its most demanding stage.

    Raises:
        ModelError: the size of a model is unknown.
    """
    source, open_teacher = config.distillation.source, config.open_teacher
    found = []
    if config.teacher.local is not None:
        found.append(engine_footprint("engine, sealed teacher", config.teacher.local, config))
    if open_teacher is not None:
        found.append(engine_footprint("engine, open teacher", open_teacher, config))
    if config.uses_proxy:
        found.append(engine_footprint("engine, proxy", config.proxy, config))
        found.append(trainer_footprint("trainer, proxy", config.proxy, (config.warmup, config.alignment), config))
    if source == "assistant" and config.white_box is not None:
        training = (config.white_box.assistant,)
        found.append(trainer_footprint("trainer, assistant", config.proxy, training, config, open_teacher))
    teacher = config.proxy if source == "assistant" else open_teacher
    found.append(trainer_footprint("trainer, student", config.student, (config.distillation,), config, teacher))
    return found


def disk_gib(config: RunConfig, corpus_tokens: float = 0.0) -> float:
    """The run directory at its largest: the models it starts from, two checkpoints, the student, adapters and labels.

    Models of unknown size count as nothing.
    """
    models = list(config.models.values())
    shapes = [(arch, model) for model in models if (arch := architecture(model)) is not None]
    total = sum(arch.parameters * BYTES[model.dtype] for arch, model in shapes)
    for arch, model in shapes:
        if model is config.student:
            total += arch.parameters * BYTES[model.dtype]
        if model is config.proxy or model is config.student:
            lora = model.method == "lora"
            trained = 4 * arch.lora_parameters(model.lora.rank) if lora else BYTES[model.dtype] * arch.parameters
            total += 2 * 3 * trained  # weights and Adam's moments; the old one goes when the new one stands
            total += (config.alignment.rounds + 1) * trained if model is config.proxy else 0
    return (total + SOFT_LABEL_BYTES * corpus_tokens) / GIB
