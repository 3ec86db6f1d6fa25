"""`proxykd plan`: memory, tokens and hours of a config, from the formulas of memory_plan and time_plan."""

from __future__ import annotations

from math import ceil
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.table import Table

from proxykd.config import RunConfig
from proxykd.costs.devices import GPUS, Device, this_cpu
from proxykd.costs.estimator import SAMPLED, Estimator, StageEstimate, Text
from proxykd.costs.memory_plan import Footprint, disk_gib, footprints, machine_disk_gib
from proxykd.errors import ConfigError
from proxykd.evaluation.task import answer_tokens, read_task
from proxykd.planning.machine import available_memory_gib
from proxykd.planning.requirements import memory_needed, pool_demands, shared_memory_needed
from proxykd.planning.text_checks import require_text
from proxykd.planning.time_plan import estimate
from proxykd.text.corpus import Reading, Record, read_prompts, records_of
from services.cli.formatting import figure_table

CHARACTERS_A_TOKEN = 4.0
"""Of English text, roughly."""


def print_plan(
    config: RunConfig,
    device_name: str | None,
    records: int | None,
    prompt_tokens: float | None,
    completion_tokens: float | None,
) -> None:
    """Prints the plan.

    Raises:
        ConfigError: an unknown device, or a corpus that is not here and of which nothing is said.
        CorpusError: the text cannot be used, or corpus.training_limit is beyond what there is.
        BenchmarkError: alignment.task cannot be asked.
        ModelError: the size of a model is unknown.
    """
    device = _device(config, device_name)
    require_text([config])
    text = _text(config, records, prompt_tokens, completion_tokens)
    memory, stages = footprints(config), estimate(config, text, device)
    console = Console(highlight=False)
    console.print(
        f"{config.name}: {text.records} records of {text.prompt:.0f} + {text.completion:.0f} tokens, on {device.name} "
        f"({device.peak / 1e12:.3g} TFLOP/s, {device.bandwidth / 1e9:.3g} GB/s)"
    )
    console.print(_memory_table(memory, device))
    console.print(_needs_table(config))
    console.print(_disks(config, text))
    console.print(_time_table(stages, text))
    estimator = Estimator(config, text, device)
    if config.teaching.aligned and config.alignment.preference and estimator.pairs:
        of_round, of_labels = estimator.beside_sft()
        console.print(
            f"beside an epoch of SFT on the same records: a preference round {of_round:.1f} times as long (the paper: "
            f"5.1), labels and distillation {of_labels:.1f} times (2.0)\n"
        )
    over = [one for one in memory if config.resources.device == "gpu" and one.total > device.memory_gib]
    for one in over:
        console.print(
            f"{one.what}: {one.total:.1f} GiB do not fit one {device.name}; use more devices "
            f"(engine_tensor_parallel, trainer_workers with parallel=fsdp2), fewer micro_batch_tokens or "
            f"engine_max_seqs, or gradient_checkpointing"
        )


def _device(config: RunConfig, name: str | None) -> Device:
    name = name or ("this" if config.resources.device == "cpu" else "a100-80g")
    if (name == "this") != (config.resources.device == "cpu"):
        raise ConfigError(f"--device {name} does not go with resources.device={config.resources.device}")
    if name == "this":
        return this_cpu(available_memory_gib())
    if name not in GPUS:
        raise ConfigError(f"unknown device {name!r}; known: {', '.join(GPUS)}, this")
    return GPUS[name]


def _text(config: RunConfig, records: int | None, prompt: float | None, completion: float | None) -> Text:
    """The corpus in numbers: as asked, else from the file that the config names, else from what it will collect."""
    corpus, sample = config.corpus, list[tuple[int, int]]()
    if corpus.path and Path(corpus.path).exists():
        sizes = [(_characters(one), len(one.completion)) for one in records_of(corpus, Reading())]
        prompts, completions = (fmean(each) / CHARACTERS_A_TOKEN for each in zip(*sizes, strict=True))
        count = len(sizes)
        sample = [(_tokens(one), _tokens(other)) for one, other in sizes[:: ceil(count / SAMPLED)]]
    elif corpus.prompts and Path(corpus.prompts).exists():
        rows = read_prompts(corpus.prompts, "corpus.prompts")[: corpus.limit]
        prompts = fmean(map(_characters, rows)) / CHARACTERS_A_TOKEN
        count, completions = len(rows), float(config.teacher.max_tokens)
    elif records is None:
        raise ConfigError(
            f"the corpus {corpus.path or corpus.prompts} is not here; say what it holds: --records N "
            f"[--prompt-tokens 200] [--completion-tokens 250]"
        )
    else:
        count, prompts, completions = records, 200.0, 250.0
    more = corpus.unlabelled
    known = more is not None and (records is None or Path(more).exists())
    unlabelled = len(read_prompts(str(more), "corpus.unlabelled")) if known else 0
    task = read_task(config.alignment)
    return Text(
        records=records or count,
        prompt=prompt or prompts,
        completion=completion or completions,
        unlabelled=unlabelled,
        questions=len(task),
        answers=answer_tokens(task),
        sample=() if prompt or completion else tuple(sample),
    )


def _tokens(characters: int) -> int:
    return max(1, round(characters / CHARACTERS_A_TOKEN))


def _characters(row: Record) -> int:
    """Of a record's prompt."""
    return sum(len(m["content"]) for m in row.messages)


def _memory_table(memory: list[Footprint], device: Device) -> Table:
    table = figure_table(f"GiB of each device (of {device.memory_gib:.0f})", "", *(one.what for one in memory))
    for name in dict.fromkeys(name for one in memory for name in one.parts):
        table.add_row(name, *(f"{one.parts[name]:.2f}" if name in one.parts else "" for one in memory))
    table.add_section()
    table.add_row("all", *(f"{one.total:.2f}" for one in memory))
    table.add_row("devices", *(str(one.processes) for one in memory))
    return table


def _needs_table(config: RunConfig) -> Table:
    table = figure_table("What must be there", "pool", "CPUs", "GPUs", "on one node", "host memory, GiB")
    for pool, demand in pool_demands(config).items():
        table.add_row(
            pool or "any node", str(demand.cpus), str(demand.gpus), str(demand.largest), f"{demand.memory_gib:.1f}"
        )
    return table


def _disks(config: RunConfig, text: Text) -> str:
    disk = disk_gib(config, text.records * text.completion)
    return (
        f"on disk: {disk:.1f} GiB in the run directory; on each machine up to {machine_disk_gib(config):.1f} GiB of "
        f"models that are converted, pruned or merged\n"
        f"shared memory: {shared_memory_needed(config):.0f} GiB a node\n"
        f"host memory, if one machine does all: {memory_needed(config):.1f} GiB\n"
    )


def _time_table(stages: list[StageEstimate], text: Text) -> Table:
    table = figure_table("Time", "stage", "records", "tokens", "devices", "hours", "device-hours")
    for s in stages:
        table.add_row(
            s.stage, str(s.records), f"{s.tokens:.3g}", str(s.devices), f"{s.hours:.2f}", f"{s.hours * s.devices:.2f}"
        )
    table.add_section()
    hours, device_hours = sum(s.hours for s in stages), sum(s.hours * s.devices for s in stages)
    table.add_row("all", "", "", "", f"{hours:.2f}", f"{device_hours:.2f}")
    return table
