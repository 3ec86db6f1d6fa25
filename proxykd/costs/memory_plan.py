"""Memory that a run's processes hold on their devices, and its files on disks, from stated formulas.

P parameters, p those that are trained (all, or LoRA's in float32), b bytes of a weight, c of a trained one, S workers
that share the weights (fsdp2) or 1, t tokens of a micro-batch, L layers, H hidden, I intermediate, Q and KV the
widths of queries and keys, r LoRA's rank, V vocabulary, E = V H for the embeddings, and again for a head of its own.

    weights        P b / S, LoRA's included; where sharded, two whole layers more (one computes while the next arrives)
                   and E b: embeddings and head stay gathered from the forward pass to the end of the backward pass
    training       3 p c / S, gradient and Adam's two moments; 4 p c / S where a loss has two terms, whose gradients are
                   measured one after the other. Full training: 4 V H for the head's gradient beside them
    activations    L t k, with k bytes a token and layer as autograd keeps them (torch 2.13, Llama):
                     float32  full 24 H + 16 I + 8 Q + 8 KV + 22     lora 16 H + 16 I + 8 Q + 8 KV + 22 + 28 r
                     bfloat16 full 16 H +  8 I + 4 Q + 4 KV + 22     lora 28 H + 10 I + 8 Q + 4 KV + 22 + 28 r
                   on GPUs (tests/gpu/test_memory.py), where attention has other kernels (packed_attention.py) and
                   adapters multiply in bfloat16 (scorer.py):
                     float32  8 Q + 8 KV become 20 Q; 28 Q for pairs, whose prompts have a place in both sequences
                     bfloat16 lora 12 H + 8 I + 4 Q + 4 KV + 22 + 14 r
                   with gradient checkpointing: L t b H, and k t for the one layer in hand
                   compiled layers keep less, and are counted as if they were not
    working        the largest of what comes one after the other:
                     t w for the layer in hand, w = 8 I + 5 H in float32, in bfloat16 4 I + 24 H full, 4 I + 20 H lora;
                       full training that is sharded: three layers' gradients more, on the way to their parts
                     4 t b H and three chunks of the head in float32 (head.py)
                     without activations: a KV cache of the completions that the trainer itself draws at once
                     once the activations are gone: p c / S for Adam's step and the sum over replicas; sharded full
                       training: 3 E b, the gradients of embeddings and head on their way
    frozen         weights of the models that a student's loss reads as it trains
    evaluation     weights of the sealed teacher beside the largest model that it judges, and six chunks of logits
    KV cache       2 L KV b a token, for max_seqs sequences of max_length, shared by tensor parallel devices
    engine LoRA    the slots; on CPUs also t r max(H, I, Q) (b, or b + 4 in bfloat16), for vLLM's kernels gather each
                   token's matrix of a batch
    engine logits  two float32 copies of [tokens of one request, or 2,048 if they are fewer, V]: prompt log-probs (vLLM)

Working memory is a bound, all else is counted: a step holds at most the sum, and at least the sum without it
(tests/unit/test_peaks.py; `python -m benchmarks.plan` prints both).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from proxykd.config import LORA_SLOTS, ModelConfig, RunConfig, TrainConfig, lora_slot_rank
from proxykd.losses.head_chunks import chunk_tokens
from proxykd.models.architecture import Architecture, architecture, own_dtype, require_architecture

GIB = 2**30
BYTES = {"float32": 4, "bfloat16": 2}
ACTIVATIONS = {
    ("float32", "full"): (24, 16, 8, 8),
    ("float32", "lora"): (16, 16, 8, 8),
    ("bfloat16", "full"): (16, 8, 4, 4),
    ("bfloat16", "lora"): (28, 10, 8, 4),
}
"""Bytes a token and layer for each unit of H, I, Q and KV."""
ON_GPU = {
    ("float32", "full"): (24, 16, 20, 0),
    ("float32", "lora"): (16, 16, 20, 0),
    ("bfloat16", "full"): (16, 8, 4, 4),
    ("bfloat16", "lora"): (12, 8, 4, 4),
}
"""The same there."""
PAIR_QUERY = 8
"""Bytes more of Q, in float32 on a GPU, where a prompt lies before two completions: places for half as many tokens
again, four tensors in each."""
WORKING = {
    ("float32", "full"): (5, 8),
    ("float32", "lora"): (5, 8),
    ("bfloat16", "full"): (24, 4),
    ("bfloat16", "lora"): (20, 4),
}
"""Bytes a token of the layer in hand, for each unit of H and I, that its backward pass holds beside what was kept."""
FILE_GIB = 5e9 / 2**30
"""Of the largest file of weights: what publishers cut theirs at, and so does this project."""
FILE_WORK = 1.2
"""Memory of a process that goes through a model's files one at a time, to convert or merge, over the largest file's."""
ENGINE_BATCH_TOKENS = 2048
GATHERED_BYTES = {"float32": 4, "bfloat16": 6}
"""Of a weight that vLLM's CPU kernels gather for a token's LoRA adapter: its own, and its copy in float32."""
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


def kept_for_backward(arch: Architecture, model: ModelConfig, device: str = "cpu", pairs: bool = False) -> float:
    """Bytes that autograd keeps for one token of one layer; `pairs` have a prompt once for two completions."""
    units = ACTIVATIONS if device == "cpu" else ON_GPU
    hidden, intermediate, query, kv = units[model.dtype, model.method]
    kept = hidden * arch.hidden + intermediate * arch.intermediate + query * arch.query_width + kv * arch.kv_width + 22
    if device == "gpu" and model.dtype == "float32" and pairs:
        kept += PAIR_QUERY * arch.query_width
    if model.method != "lora":
        return kept
    return kept + (14 if device == "gpu" and model.dtype == "bfloat16" else 28) * model.lora.rank


def trainer_footprint(
    what: str,
    model: ModelConfig,
    stages: tuple[TrainConfig, ...],
    config: RunConfig,
    frozen: Sequence[ModelConfig] = (),
    terms: int = 1,
    draws: int = 0,
    pairs: bool = False,
) -> Footprint:
    """One Ray Train worker that trains `model`, in the most demanding of `stages`, by a loss of so many `terms`, of
    `pairs` where it compares two completions; the `frozen` models are held beside it, and the workers draw completions
    of so many prompts at once."""
    arch, resources = require_architecture(model), config.resources
    size, tokens = BYTES[model.dtype], resources.micro_batch_tokens
    trained = trained_bytes(model) / _shards(config)
    training = (4 if terms > 1 else 3) * trained
    layer_moves = end_moves = 0
    if model.method == "full":
        training += 4 * arch.head
        if _shards(config) > 1:
            layer_moves, end_moves = 3 * size * arch.layer_linear, 3 * size * arch.embeddings
    kept = kept_for_backward(arch, model, resources.device, pairs)
    activations = max(
        tokens * (arch.layers * size * arch.hidden + kept if stage.gradient_checkpointing else arch.layers * kept)
        for stage in stages
    )
    hidden, intermediate = WORKING[model.dtype, model.method]
    layer = tokens * (hidden * arch.hidden + intermediate * arch.intermediate)
    head = tokens * 4 * size * arch.hidden + 3 * logits_bytes(arch, tokens, resources.device)
    cache = -(-draws // resources.trainer_workers) * config.corpus.max_length * kv_bytes(arch, model.dtype)
    parts = {
        "weights": placed_bytes(model, config),
        "training": training,
        "activations": activations,
        "working": max(layer + layer_moves, head, max(trained, end_moves, cache) - activations),
    }
    if frozen:
        parts["frozen"] = sum(placed_bytes(other, config) for other in frozen)
    return Footprint(what, resources.trainer_workers, {name: value / GIB for name, value in parts.items()})


def evaluation_footprint(config: RunConfig, sealed: ModelConfig) -> Footprint:
    """One worker that judges a model beside the sealed teacher, whose hidden states wait in the host's memory."""
    judged = [config.student, *([config.proxy] if config.teaching.labels else [])]
    largest = max(judged, key=lambda model: placed_bytes(model, config))
    tokens, (one, other) = config.resources.micro_batch_tokens, map(require_architecture, (largest, sealed))
    hidden, intermediate = WORKING[largest.dtype, largest.method]
    layer = tokens * max(hidden * arch.hidden + intermediate * arch.intermediate for arch in (one, other))
    parts = {
        "weights": placed_bytes(largest, config),
        "working": max(layer, 6 * logits_bytes(one, tokens, config.resources.device)),
        "teacher": placed_bytes(sealed, config),
    }
    return Footprint(
        "trainer, evaluation", config.resources.trainer_workers, {name: value / GIB for name, value in parts.items()}
    )


def placed_bytes(model: ModelConfig, config: RunConfig) -> float:
    """A model's weights on one worker, adapter included."""
    arch, size, shards = require_architecture(model), BYTES[model.dtype], _shards(config)
    lora = trained_bytes(model) if model.method == "lora" else 0
    if shards == 1:
        return arch.parameters * size + lora
    layers = 2 * (arch.layer_linear * size + lora / arch.layers)
    return (arch.parameters * size + lora) / shards + layers + arch.embeddings * size


def trained_bytes(model: ModelConfig) -> int:
    """Bytes of all weights that take gradients, over all workers."""
    arch = require_architecture(model)
    return 4 * arch.lora_parameters(model.lora.rank) if model.method == "lora" else BYTES[model.dtype] * arch.parameters


def logits_bytes(arch: Architecture, tokens: int, device: str) -> int:
    """Bytes of one chunk of the head's logits in float32."""
    return 4 * arch.vocabulary * min(tokens, chunk_tokens(arch.vocabulary, "cuda" if device == "gpu" else device))


def gathered_gib(model: ModelConfig, config: RunConfig) -> float:
    """What the worker that writes a checkpoint has in the host's memory beside its own: weights that are trained and
    Adam's moments, whole. Replicas on a CPU have them already."""
    if config.resources.device == "cpu" and _shards(config) == 1:
        return 0.0
    return 3 * trained_bytes(model) / GIB


def file_work_gib(model: ModelConfig, dtype: str) -> float:
    """GiB of the host's memory, while a process converts a model or merges an adapter into it, file by file."""
    return FILE_WORK * min(FILE_GIB, require_architecture(model).parameters * BYTES[dtype] / GIB)


def _shards(config: RunConfig) -> int:
    return config.resources.trainer_workers if config.resources.parallel == "fsdp2" else 1


def kv_bytes(arch: Architecture, dtype: str) -> int:
    """Bytes of one token in the KV cache, over all devices of an engine."""
    return 2 * arch.layers * arch.kv_width * BYTES[dtype]


def engine_footprint(what: str, model: ModelConfig, config: RunConfig, adapters: bool = True) -> Footprint:
    """One device of an engine that never has to wait for room in its KV cache."""
    arch, resources, dtype = require_architecture(model), config.resources, config.engine.dtype
    devices = resources.engine_tensor_parallel
    if resources.device == "cpu":
        cache = resources.engine_memory_gib * GIB  # what vLLM is told to take
    else:
        cache = resources.engine_max_seqs * config.corpus.max_length * kv_bytes(arch, dtype) / devices
    tokens = max(ENGINE_BATCH_TOKENS, config.corpus.max_length + 1)
    lora = 0.0
    if adapters and config.engine.adapters == "lora":
        rank = lora_slot_rank(config.proxy.lora.rank)
        lora = LORA_SLOTS * BYTES[dtype] * arch.lora_parameters(rank) / devices
        if resources.device == "cpu":
            lora += tokens * rank * max(arch.hidden, arch.intermediate, arch.query_width) * GATHERED_BYTES[dtype]
    logits = 2 * 4 * tokens * arch.vocabulary / devices
    weights = arch.parameters * BYTES[dtype] / devices
    parts = {"weights": weights, "adapters": lora, "KV cache": cache, "logits": logits}
    return Footprint(what, resources.engine_replicas * devices, {name: v / GIB for name, v in parts.items()})


def footprints(config: RunConfig) -> list[Footprint]:
    """Every process of a run that holds a model, at its most demanding stage.

    Raises:
        ModelError: the size of a model is unknown.
    """
    teaching, open_teacher, sealed = config.teaching, config.open_teacher, config.teacher.local
    found = []
    if sealed is not None:
        found.append(engine_footprint("engine, sealed teacher", sealed, config, adapters=False))
    if open_teacher is not None:
        found.append(engine_footprint("engine, open teacher", open_teacher, config, adapters=False))
    if teaching.labels:
        pairs = config.alignment.preference
        terms = 2 if pairs else 1
        stages = (config.warmup, config.alignment)
        found.append(engine_footprint("engine, proxy", config.proxy, config))
        asked = config.alignment.global_batch if config.alignment.task is not None else 0
        found.append(trainer_footprint("trainer, proxy", config.proxy, stages, config, (), terms, asked, pairs))
    if teaching.assistant and config.white_box is not None:
        training = (config.white_box.assistant,)
        found.append(
            trainer_footprint("trainer, assistant", config.proxy, training, config, [config.white_box.teacher])
        )
    terms = 2 if teaching.labels else 1
    distilled, frozen = (config.distillation,), config.read_beside_student
    white_box = config.white_box if teaching.open_teacher else None
    draws = config.distillation.global_batch if white_box is not None and white_box.on_policy else 0
    found.append(trainer_footprint("trainer, student", config.student, distilled, config, frozen, terms, draws))
    if config.sft is not None:
        found.append(trainer_footprint("trainer, student by SFT", config.student, (config.sft,), config))
    if (phase := config.on_policy) is not None:
        judge = config.proxy if phase.judge == "proxy" else config.student.model_copy(update={"method": "full"})
        beside = [] if phase.source == "engine" else [judge]
        terms, what = 1 if phase.judge == "proxy" else 2, "trainer, student on-policy"
        found.append(trainer_footprint(what, config.student, (phase,), config, beside, terms, phase.global_batch))
    if sealed is not None:
        found.append(evaluation_footprint(config, sealed))
    return found


def disk_gib(config: RunConfig, corpus_tokens: float = 0.0) -> float:
    """The run directory at its largest: two checkpoints and two best points, adapters, the student with its snapshots
    and what stands beside it, and labels. Models that it starts from are links.

    Models of unknown size count as nothing.
    """
    total = SOFT_LABEL_BYTES * corpus_tokens
    distillation, sft, on_policy = config.distillation, config.sft, config.on_policy
    stages = {"proxy": (config.warmup, config.alignment), "student": (distillation, sft, on_policy)}
    for name, model in (("proxy", config.proxy), ("student", config.student)):
        if (arch := architecture(model)) is None:
            continue
        trained = trained_bytes(model)
        total += 2 * 3 * trained  # weights and Adam's moments; the old one goes when the new one stands
        if any(stage and stage.keep == "best" and stage.evaluations > 1 for stage in stages[name]):
            total += 2 * trained  # a best point, and the one that the last checkpoint refers to
        if name == "proxy":
            total += (config.alignment.rounds + 1) * trained
        else:
            kept = 1 + (distillation.evaluations if distillation.snapshots else 0)
            kept += (on_policy is not None) + (sft is not None)
            total += kept * (arch.parameters * BYTES[model.dtype] + (trained if model.method == "lora" else 0))
    return total / GIB


def machine_disk_gib(config: RunConfig) -> float:
    """Outside of the run directory, on a machine that holds every part: in the cache folder, once for all runs, models
    that are pruned or come in another dtype; and where adapters are merged, the engine's copy for the length of a swap.

    A model whose own dtype nothing says counts as another's; one of unknown size as nothing.
    """
    made = {(m.source, m.drop_layers, m.dtype): m for m in config.models.values() if _is_made(m)}
    shapes = [(arch, model.dtype) for model in made.values() if (arch := architecture(model)) is not None]
    merged = config.engine.adapters == "merged" and config.teaching.labels
    if merged and (arch := architecture(config.proxy)) is not None:
        shapes.append((arch, config.engine.dtype))
    return sum(arch.parameters * BYTES[dtype] for arch, dtype in shapes) / GIB


def _is_made(model: ModelConfig) -> bool:
    return bool(model.drop_layers) or own_dtype(model) != model.dtype
