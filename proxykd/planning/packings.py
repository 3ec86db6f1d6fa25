"""How a stage's global batches fall into micro-batches, and what of the workers' time is left, from lengths alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from proxykd.config import USES, AlignmentConfig, ResourceConfig, RunConfig, TrainConfig, Use
from proxykd.costs.occupancy import trainers_share
from proxykd.data.round_records import round_slice
from proxykd.models.micro_batches import plan_micro_batches


class Tokens(NamedTuple):
    """The lengths of a record's sides as they are trained on."""

    prompt: int
    completion: int


@dataclass(frozen=True)
class Epoch:
    """What a stage trains on in one pass: its global batches, each the lengths of its rows."""

    name: str
    slices: tuple[str, ...]
    train: TrainConfig
    batches: list[list[int]]


@dataclass(frozen=True)
class Packing:
    """How the global batches of a stage fall into micro-batches."""

    stage: str
    slices: tuple[str, ...]
    """Whose records it trains on."""
    records: int
    """Of one epoch."""
    steps: int
    """Of all epochs."""
    micro_batches: float
    """A step, on average."""
    largest: int
    """Tokens of the largest micro-batch."""
    over_budget: int
    """Records that are longer than resources.micro_batch_tokens and so stand alone."""
    idle: float
    """The share of the workers' time in which one waits for the worker with the most tokens of a step."""


def packings(
    config: RunConfig, slices: Mapping[str, Sequence[Tokens]], by_student: Mapping[str, Sequence[Tokens]]
) -> list[Packing]:
    """Returns the packing of every training stage, given each slice's records in the order in which training sees them,
    in the proxy's tokens and in the student's.

    A round's rejected completions do not exist yet; each is taken to be as long as the chosen one. So are the
    completions of an open teacher, and the student's own.
    """
    alignment, corpus = config.alignment, config.corpus

    def epoch(
        name: str, train: TrainConfig, *uses: Use, sides: int = 1, read: Mapping[str, Sequence[Tokens]] = by_student
    ) -> Epoch:
        names = corpus.slices_for(*uses)
        records = [record for each in names for record in read[each]]
        return Epoch(name, names, train, _batches(records, train, sides))

    epochs = []
    if config.teaching.aligned:
        epochs.append(epoch("warm-up", config.warmup, "warmup", read=slices))
        shared = corpus.slice_for("alignment")
        epochs.append(Epoch(f"{alignment.rounds} rounds", (shared,), alignment, _rounds(alignment, slices[shared])))
    if config.teaching.assistant:
        assert config.white_box is not None
        epochs.append(epoch("assistant", config.white_box.assistant, "warmup", "alignment", read=slices))
    epochs.append(epoch("distillation", config.distillation, "distillation"))
    if (phase := config.on_policy) is not None:
        epochs.append(epoch("on-policy", phase, "distillation", sides=2 if phase.judge == "preference" else 1))
    if config.sft is not None:
        epochs.append(epoch("sft", config.sft, *USES))
    return [packing(each, config.resources) for each in epochs if each.batches]


def packing(epoch: Epoch, resources: ResourceConfig) -> Packing:
    """Returns how an epoch's sequences fill the micro-batches of the workers."""
    budget, workers = resources.micro_batch_tokens, resources.trainer_workers
    plans = [
        [sum(lengths[i] for i in part) for part in plan_micro_batches(lengths, budget, workers)]
        for lengths in epoch.batches
    ]
    return Packing(
        stage=epoch.name,
        slices=epoch.slices,
        records=sum(map(len, epoch.batches)),
        steps=epoch.train.epochs * len(epoch.batches),
        micro_batches=fmean(sum(map(bool, plan)) for plan in plans),
        largest=max(map(max, plans)),
        over_budget=sum(length > budget for batch in epoch.batches for length in batch),
        idle=1 - trainers_share(epoch.batches, budget, workers),
    )


def _rounds(alignment: AlignmentConfig, records: Sequence[Tokens]) -> list[list[int]]:
    """The global batches of all rounds. A pair counts both of its sides, as proxykd/data/pairs.py has it."""
    sides = 2 if alignment.preference else 1
    batches: list[list[int]] = []
    for number in range(1, alignment.rounds + 1 if records else 1):
        taken = [records[i] for i in round_slice(number, len(records), alignment)]
        batches += _batches(taken, alignment, sides)
    return batches


def _batches(records: Sequence[Tokens], train: TrainConfig, sides: int = 1) -> list[list[int]]:
    lengths = [record.prompt + sides * record.completion for record in records]
    return [lengths[start : start + train.global_batch] for start in range(0, len(lengths), train.global_batch)]
