"""What a config would run, in words: `proxykd config check`."""

from __future__ import annotations

from proxykd.config import ENGINE_TOP_K, USES, ModelConfig, RunConfig, TrainConfig
from proxykd.costs.memory_plan import footprints
from proxykd.models.architecture import architecture
from proxykd.planning.requirements import cpus_needed, gpus_needed


def describe(config: RunConfig) -> list[str]:
    """What `proxykd config check` prints."""
    resources = config.resources
    corpus = config.corpus.path or f"collected from {config.teacher.model} for {config.corpus.prompts}"
    split = config.corpus.split
    rest = 1 - split.validation - split.test
    shares = {config.corpus.slice_for(use): rest * config.corpus.share_for(use) for use in USES}
    limit = config.corpus.training_limit
    limited = f"; of what is not held out {limit} records at most, drawn by the seed" if limit else ""
    lines = [
        f"{config.name}: valid; the run would be {config.runs_dir}/{config.run_id}",
        f"  corpus        {corpus}",
        f"  slices        validation {split.validation:.1%}, test {split.test:.1%}, "
        + ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
        + limited,
        f"  proxy         {_model(config.proxy)}",
        f"  student       {_model(config.student)}, method {config.student.method}",
        *_method(config),
        f"  engine        vLLM, adapters {config.engine.adapters}, {config.engine.dtype}",
        f"  needs         {cpus_needed(config)} logical CPUs of {resources.logical_cpus} announced; "
        f"{gpus_needed(config)} GPUs ({resources.trainer_workers} trainer worker(s), {resources.parallel})",
    ]
    return lines + _memory(config)


def _method(config: RunConfig) -> list[str]:
    """What the student learns from, and how."""
    warmup, alignment, distillation, white_box = config.warmup, config.alignment, config.distillation, config.white_box
    teaching = config.teaching
    lines = []
    if teaching.aligned:
        dpo = f" + DPO (beta {alignment.beta:g})" if alignment.preference else ", without the preference loss"
        lines = [
            f"  warm-up       SFT, {_training(warmup)}",
            f"  align         up to {alignment.rounds} rounds of NLL ({alignment.nll_reduction}){dpo}, "
            + _training(alignment),
        ]
    if teaching.labels:
        whose = "" if teaching.aligned else ", of the unaligned base"
        kept = f"{config.score.top_k} draws" if config.score.method == "drawn" else f"top-{config.score.top_k} + tail"
        lines.append(f"  score         {kept}, by the {config.score.source}{whose}")
        loss = (
            f"NLL + {distillation.alpha:g} x trust ({distillation.trust}) x KL ({distillation.divergence}, "
            f"{distillation.kl_reduction})"
        ) + (" from its own start, moved as alignment moved the proxy" if teaching.shift else "")
        if config.corpus.unlabelled:
            loss += f", KL alone on the proxy's answers to {config.corpus.unlabelled}"
    elif white_box is None or not teaching.open_teacher:
        loss = "NLL on the teacher's text alone (black-box KD)"
    else:
        student = "its own completions" if white_box.on_policy else "the open teacher's completions"
        whose = "an assistant of the open teacher's" if teaching.assistant else "the open teacher's"
        lines.append(f"  open teacher  {_model(white_box.teacher.model_copy(update={'method': 'full'}))}")
        loss = f"{white_box.divergence} from {whose} whole distribution, on {student}"
    lines.append(f"  distil        {loss}, {_training(distillation)}")
    if (phase := config.on_policy) is not None:
        dpo = f"NLL ({phase.nll_reduction}) + DPO (beta {phase.beta:g}) against its own samples from before"
        whole = phase.source == "trainer" and config.student.tokenizer == "proxy"
        whose = "the aligned proxy" if whole else f"the aligned proxy's {ENGINE_TOP_K} likeliest"
        loss = f"{phase.divergence} from {whose} on its own samples" if phase.judge == "proxy" else dpo
        lines.append(f"  on-policy     {loss}, {_training(phase)}")
    if config.sft is not None:
        lines.append(f"  sft           NLL on all of the training text, {_training(config.sft)}: a second student")
    return lines


def _model(model: ModelConfig) -> str:
    pruned = f", without layers {list(model.drop_layers)}" if model.drop_layers else ""
    lora = f", LoRA r={model.lora.rank} alpha={model.lora.alpha}" if model.method == "lora" else ""
    return f"{model.source}{pruned}, {model.dtype}{lora}"


def _training(stage: TrainConfig) -> str:
    rate = f"{stage.learning_rate:g}" + ("" if stage.schedule == "constant" else f" ({stage.schedule})")
    early = "" if stage.early_stopping is None else f" at most, {stage.early_stopping} points without a new best end it"
    return f"Adam {rate}, batch {stage.global_batch}, {stage.epochs} epoch(s){early}"


def _memory(config: RunConfig) -> list[str]:
    unknown = [m.source for m in (config.proxy, config.student) if architecture(m) is None]
    if unknown:
        return [f"  memory        unknown: nothing says how large {' and '.join(unknown)} is"]
    return [
        f"  memory        {f.what}: {f.total:.1f} GiB on each of {f.processes} device(s)" for f in footprints(config)
    ] + ["                proxykd plan CONFIG says what of, and how long it takes"]
