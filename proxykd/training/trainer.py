"""One optimizer step over a global batch: accumulate each term, sum over workers, clip, step.

Nothing here knows which stage it is: a StageLoss gives each term for a micro-batch, divided by the term's unit
over the global batch, so that gradients add up whatever the micro-batches and workers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from proxykd.config import TrainConfig
from proxykd.errors import GateError
from proxykd.models.micro_batches import plan_micro_batches, share_of_worker
from proxykd.models.parallel import Workers, gathered, placed_like, whole
from proxykd.models.scorer import CompletionScorer
from proxykd.text.corpus import Row
from proxykd.training.schedules import rate_at


class StageLoss(Protocol):
    """A stage's objective over one global batch: it knows the batch's units before the first micro-batch."""

    terms: tuple[str, ...]
    metrics: tuple[str, ...]

    def __call__(self, scorer: CompletionScorer, rows: list[Row]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """For one micro-batch: each term as a scalar over its global unit, and each metric as a plain sum."""


Gate = Callable[[dict[str, float], dict[str, float]], None]


@dataclass(frozen=True)
class Step:
    """What one step saw, over all workers. Losses are in their own units; metrics are sums over the global batch."""

    losses: dict[str, float]
    metrics: dict[str, float]
    grad_norm: float
    grad_norms: dict[str, float] = field(default_factory=dict)
    """Each term's own gradient norm, where this step measured them."""
    records: int = 0

    @property
    def measures(self) -> dict[str, float]:
        """Losses, and the mean of each metric over the records."""
        return {**self.losses, **{name: value / max(1, self.records) for name, value in self.metrics.items()}}

    def facts(self) -> dict[str, Any]:
        """The step as a point of its stage's curves."""
        return {**self.measures, "grad_norm": self.grad_norm, "grad_norms": self.grad_norms}


class Trainer:
    """Adam without weight decay, fresh for every stage and round."""

    def __init__(
        self, scorer: CompletionScorer, config: TrainConfig, workers: Workers, micro_batch_tokens: int, total_steps: int
    ):
        """`total_steps` are those over which the rate falls."""
        self.scorer = scorer
        self.config = config
        self.workers = workers
        self.micro_batch_tokens = micro_batch_tokens
        self.total_steps = total_steps
        self.parameters = [p for p in scorer.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(self.parameters, lr=config.learning_rate, fused=True)
        self.steps = 0

    def micro_batches(self, rows: Sequence[Row]) -> list[tuple[list[Row], float]]:
        """This worker's micro-batches of a global batch, each with its weight.

        Weight 0 marks a repeat that only keeps fsdp2's collectives in step, where there are fewer than workers.
        """
        plan = plan_micro_batches([row["length"] for row in rows], self.micro_batch_tokens, self.workers.world)
        mine = share_of_worker(plan, self.workers.rank, self.workers.world)
        filler = next(filter(None, reversed(plan))) if self.workers.mode == "fsdp2" else None
        weighted = [(indices or filler, 1.0 if indices else 0.0) for indices in mine]
        return [([rows[i] for i in indices], weight) for indices, weight in weighted if indices]

    def step(self, rows: Sequence[Row], stage: StageLoss, gate: Gate | None = None) -> Step:
        """Trains on one global batch.

        Where a stage has several terms, each one's gradient norm is measured on the first step and then every
        `grad_norms_every` steps, by a pass a term. `gate` sees losses and metrics before the
        optimizer moves anything and may raise.

        Raises:
            GateError: the loss or the gradient is not finite.
        """
        micro_batches = self.micro_batches(rows)
        measured = self.steps % self.config.grad_norms_every == 0 and len(stage.terms) > 1
        grad_norms: dict[str, float] = {}
        total: list[Tensor] = []
        for group in [(term,) for term in stage.terms] if measured else [stage.terms]:
            losses, metrics = self._accumulate(micro_batches, stage, group)
            if measured:
                gradients = self._take_gradients()
                grad_norms[group[0]] = float(whole(torch.nn.utils.get_total_norm(gradients)))
                total = gradients if not total else [a.add_(b) for a, b in zip(total, gradients, strict=True)]
        for parameter, gradient in zip(self.parameters, total, strict=False):
            parameter.grad = gradient
        if gate is not None:
            gate(losses, metrics)
        norm = float(whole(torch.nn.utils.clip_grad_norm_(self.parameters, self.config.gradient_clip)))
        if not all(map(torch.isfinite, map(torch.tensor, (norm, *losses.values())))):
            raise GateError(
                f"step {self.steps}: loss {losses} with gradient norm {norm:g}; lower learning_rate "
                f"({self.config.learning_rate:g}) or look at the data of this batch"
            )
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = rate_at(self.config, self.steps, self.total_steps)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        return Step(losses, metrics, norm, grad_norms, len(rows))

    def state(self) -> dict[str, Any] | None:
        """All that the next step depends on, whole and on the CPU: weights, Adam's moments, steps, the RNG. From
        another device it is a copy, which no step changes.

        Every worker must call it. Rank 0 has it, the others get None and hold one tensor of it at a time. Any number of
        workers can go on from it.
        """
        keep = self.workers.rank == 0
        moments = [
            {name: _copied(gathered(value, keep)) for name, value in self.optimizer.state[p].items()}
            for p in self.parameters
        ]
        weights = self.weights()
        if weights is None:
            return None
        return {"steps": self.steps, "parameters": weights, "moments": moments, "rng": torch.get_rng_state()}

    def weights(self) -> list[Tensor] | None:
        """What trains, whole and on the CPU. Every worker must call it; those that do not lead get None."""
        found = [gathered(p, self.workers.rank == 0) for p in self.parameters]
        whole_ones = [value for value in found if value is not None]
        return whole_ones or None

    def take_weights(self, weights: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for parameter, value in zip(self.parameters, weights, strict=True):
                parameter.copy_(placed_like(parameter, value))

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from `state`: the next step is bit for bit the one that would have come (same workers, float32)."""
        self.take_weights(state["parameters"])
        for parameter, moments in zip(self.parameters, state["moments"], strict=True):
            self.optimizer.state[parameter] = {
                # Adam counts its steps in a scalar, which is no part of a sharded tensor.
                name: value.to(parameter.device, copy=True) if value.ndim == 0 else placed_like(parameter, value)
                for name, value in moments.items()
            }
        torch.set_rng_state(state["rng"])
        self.steps = state["steps"]

    def _accumulate(
        self, micro_batches: list[tuple[list[Row], float]], stage: StageLoss, group: tuple[str, ...]
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Leaves the gradient of the group's sum on the parameters; losses and metrics are of all terms."""
        sums = torch.zeros(len(stage.terms) + len(stage.metrics), dtype=torch.float64, device=self.workers.device)
        for rows, weight in micro_batches:
            losses, metrics = stage(self.scorer, rows)
            objective = torch.stack([losses[term] for term in group]).sum()
            (objective * (weight * self.workers.gradient_scale)).backward()
            values = [*(losses[term].detach() for term in stage.terms), *(metrics[name] for name in stage.metrics)]
            sums += weight * torch.stack([value.double() for value in values])  # nothing waits for the device here
        self.workers.sum_gradients(self.parameters)
        found = self.workers.sum(sums).tolist()
        terms = len(stage.terms)
        return dict(zip(stage.terms, found[:terms], strict=True)), dict(zip(stage.metrics, found[terms:], strict=True))

    def _take_gradients(self) -> list[Tensor]:
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        self.optimizer.zero_grad(set_to_none=True)
        return gradients


def _copied(moment: Tensor | None) -> Tensor | None:
    """Adam counts its steps in a scalar, which may lie on the CPU beside moments that do not."""
    return moment.clone() if moment is not None and moment.ndim == 0 else moment
