"""Data-parallel workers: who this process is, and sums over all of them.

`ddp` keeps a replica a worker and sums gradients once a step, after accumulation: LoRA gradients are megabytes,
and a worker may then have fewer micro-batches than another. `fsdp2` shards every layer's weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from proxykd.models.batching import CompletionBatch, collate
from proxykd.models.scorer import CompletionScorer

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Workers:
    """This worker's place among `world`. Sums are no-ops for a world of one."""

    rank: int = 0
    world: int = 1
    mode: Literal["ddp", "fsdp2"] = "ddp"
    device: torch.device = CPU

    @classmethod
    def current(cls, mode: Literal["ddp", "fsdp2"], device: torch.device) -> Workers:
        if not dist.is_initialized():
            return cls(mode=mode, device=device)
        return cls(dist.get_rank(), dist.get_world_size(), mode, device)

    def place(self, scorer: CompletionScorer) -> CompletionScorer:
        """Moves the model to this worker's device and, under fsdp2, shards it: layer by layer, so that no device ever
        holds it whole."""
        if self.mode == "ddp":
            return scorer.to(self.device)
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        mesh = init_device_mesh(self.device.type, (self.world,))
        for layer in scorer.layers():
            fully_shard(layer, mesh=mesh)
        fully_shard(scorer, mesh=mesh)
        for method in ("score", "draw", "hidden"):
            register_fsdp_forward_method(scorer, method)
        return scorer

    @property
    def gradient_scale(self) -> float:
        """What a loss is multiplied by so that gradients end as the sum over workers (fsdp2 averages them)."""
        return float(self.world) if self.mode == "fsdp2" else 1.0

    def sum(self, tensor: Tensor) -> Tensor:
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def max(self, tensor: Tensor) -> Tensor:
        if self.world > 1:
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tensor

    def any(self, mine: bool) -> bool:
        """Whether it is so on one worker at least. Every worker must call it."""
        return bool(self.max(torch.tensor(float(mine), device=self.device)) > 0)

    def in_step(self, scorer: CompletionScorer, batches: Sequence[CompletionBatch]) -> Iterator[CompletionBatch]:
        """Batches for one `scorer.score` each; every worker must take all of its own.

        The forward pass of a sharded model needs every worker: those with fewer batches make passes over a single token
        until the one with the most is done.
        """
        most = int(self.max(torch.tensor(len(batches), device=self.device))) if self.mode == "fsdp2" else 0
        yield from (batch.to(self.device) for batch in batches)
        for _ in range(most - len(batches)):
            scorer.score(collate([[0]], [[0]]).to(self.device))

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """One all-reduce over all gradients, flattened. A parameter without one counts as zero."""
        if self.world == 1 or self.mode == "fsdp2":
            return
        parameters = list(parameters)
        flat = torch.cat([_gradient(p).flatten() for p in parameters])
        dist.all_reduce(flat)
        for parameter, gradient in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = gradient.view_as(parameter)

    def of_lead(self, value: Any) -> Any:
        """The value that rank 0 has, on every worker. What is decided by it is decided alike everywhere."""
        return self.gather_objects(value)[0]

    def gather_objects(self, value: Any) -> list[Any]:
        """Every worker's value, in rank order, on every worker."""
        if self.world == 1:
            return [value]
        gathered: list[Any] = [None] * self.world
        dist.all_gather_object(gathered, value)
        return gathered


def full_state(module: nn.Module, trainable_only: bool, keep: bool = True) -> dict[str, Tensor]:
    """The state dict with its tensors whole and on the CPU, where this worker is to `keep` it; else an empty one.

    Every worker must call it: sharded tensors are gathered one after the other, so that a worker that does not keep
    them never holds more than one. Tied names share one tensor.
    """
    seen: dict[int, Tensor | None] = {}
    found = {}
    for name, value in module.state_dict(keep_vars=True).items():
        if value.requires_grad or not trainable_only:
            if id(value) not in seen:
                seen[id(value)] = gathered(value, keep)
            found[name] = seen[id(value)]
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def gathered(tensor: Tensor, keep: bool) -> Tensor | None:
    """`tensor` whole and on the CPU where this worker is to `keep` it, else None. Every worker must call it."""
    if not keep and not hasattr(tensor, "full_tensor"):
        return None
    found = whole(tensor.detach())
    return found.cpu() if keep else None


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor.detach()


def placed_like(example: Tensor, tensor: Tensor) -> Tensor:
    """A copy of a whole tensor, which every worker has, where `example` is, and of its own part if that is sharded."""
    mesh = getattr(example, "device_mesh", None)
    if mesh is None:
        return tensor.to(example.device, copy=True)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, mesh, example.placements, src_data_rank=None)  # type: ignore[attr-defined]


def _gradient(parameter: nn.Parameter) -> Tensor:
    return parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
