"""`proxykd plan`: memory, tokens and hours of a config, from the formulas of memory_plan and time_plan."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from rich import box
from rich.console import Console
from rich.table import Table

from proxykd.config import RunConfig
from proxykd.errors import ConfigError
from proxykd.planning.machine import available_memory_gib
from proxykd.planning.memory_plan import Footprint, disk_gib, footprints, machine_disk_gib
from proxykd.planning.requirements import memory_needed, pool_demands, shared_memory_needed
from proxykd.planning.time_plan import GPUS, Device, StageEstimate, Text, estimate, this_cpu
from proxykd.text.corpus import Record, read_corpus, read_prompts

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
        ModelError: the size of a model is unknown.
    """
    device = _device(config, device_name)
    text = _text(config, records, prompt_tokens, completion_tokens)
    holders, stages = footprints(config), estimate(config, text, device)
    console = Console(highlight=False)
    console.print(
        f"{config.name}: {text.records} records of {text.prompt:.0f} + {text.completion:.0f} tokens, on {device.name} "
        f"({device.peak / 1e12:.3g} TFLOP/s, {device.bandwidth / 1e9:.3g} GB/s)"
    )
    console.print(_memory_table(holders, device))
    console.print(_needs_table(config))
    console.print(_disks(config, text))
    console.print(_time_table(stages, text))
    over = [holder for holder in holders if config.resources.device == "gpu" and holder.total > device.memory_gib]
    for holder in over:
        console.print(
            f"{holder.what}: {holder.total:.1f} GiB do not fit one {device.name}; use more devices "
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
    corpus = config.corpus
    if corpus.path and Path(corpus.path).exists():
        rows = read_corpus(corpus).records
        count, prompts = len(rows), _prompt_tokens(rows)
        completions = fmean(len(row.completion) for row in rows) / CHARACTERS_A_TOKEN
    elif corpus.prompts and Path(corpus.prompts).exists():
        rows = read_prompts(corpus.prompts)[: corpus.limit]
        count, prompts, completions = len(rows), _prompt_tokens(rows), float(config.teacher.max_tokens)
    elif records is None:
        raise ConfigError(
            f"the corpus {corpus.path or corpus.prompts} is not here; say what it holds: --records N "
            f"[--prompt-tokens 200] [--completion-tokens 250]"
        )
    else:
        count, prompts, completions = records, 200.0, 250.0
    return Text(records or count, prompt or prompts, completion or completions)


def _prompt_tokens(rows: list[Record]) -> float:
    return fmean(sum(len(m["content"]) for m in row.messages) for row in rows) / CHARACTERS_A_TOKEN


def _memory_table(holders: list[Footprint], device: Device) -> Table:
    table = _table(f"GiB of each device (of {device.memory_gib:.0f})", "", *(holder.what for holder in holders))
    for name in dict.fromkeys(name for holder in holders for name in holder.parts):
        table.add_row(name, *(f"{holder.parts[name]:.2f}" if name in holder.parts else "" for holder in holders))
    table.add_section()
    table.add_row("all", *(f"{holder.total:.2f}" for holder in holders))
    table.add_row("devices", *(str(holder.processes) for holder in holders))
    return table


def _needs_table(config: RunConfig) -> Table:
    table = _table("What must be there", "pool", "CPUs", "GPUs", "on one node", "host memory, GiB")
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
    table = _table("Time", "stage", "records", "tokens", "devices", "hours", "device-hours")
    for s in stages:
        table.add_row(
            s.stage, str(s.records), f"{s.tokens:.3g}", str(s.devices), f"{s.hours:.2f}", f"{s.hours * s.devices:.2f}"
        )
    table.add_section()
    hours, device_hours = sum(s.hours for s in stages), sum(s.hours * s.devices for s in stages)
    table.add_row("all", "", "", "", f"{hours:.2f}", f"{device_hours:.2f}")
    return table


def _table(title: str, first: str, *numbers: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column(first)
    for column in numbers:
        table.add_column(column, justify="right")
    return table
