"""The head on completion tokens, forward and backward, by the size of its chunks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.gpu.measuring import MIB, added_mib, milliseconds
from proxykd.losses import head_chunks
from proxykd.losses.head import Head

SHAPES = ((2048, 128_256), (4096, 128_256), (896, 151_936), (4096, 32_000))
"""Hidden and vocabulary of Llama 3's 1B and 8B, Qwen 2.5's 0.5B and Llama 2's 7B."""
CHUNKS_MIB = (40, 80, 160, 320, 640, 1280, 2560)
TOKENS, TOP_K = 8192, 10


def measure() -> Iterator[dict[str, Any]]:
    """A frozen bfloat16 head, as under LoRA; and one that trains in float32."""
    for hidden, vocabulary in SHAPES:
        yield from _sweep(hidden, vocabulary, torch.bfloat16, trained=False)
    yield from _sweep(*SHAPES[0], torch.float32, trained=True)


def _sweep(hidden: int, vocabulary: int, dtype: torch.dtype, trained: bool) -> Iterator[dict[str, Any]]:
    linear = torch.nn.Linear(hidden, vocabulary, bias=False, device="cuda", dtype=dtype).requires_grad_(trained)
    states = torch.randn(TOKENS, hidden, device="cuda", dtype=dtype, requires_grad=True)
    labels = torch.randint(vocabulary, (TOKENS,), device="cuda")
    ids = (labels[:, None] + torch.arange(1, TOP_K + 1, device="cuda")) % vocabulary
    wanted = [states, linear.weight] if trained else [states]
    what = {"hidden": hidden, "vocabulary": vocabulary, "type": str(dtype)[6:], "trained": trained}

    def ours() -> None:
        columns = Head(linear, vocabulary).token_logps(states, labels, ids)
        torch.autograd.grad(sum(column.sum() for column in columns), wanted)

    def naive() -> None:
        logps = linear(states).float().log_softmax(-1)
        torch.autograd.grad(logps.gather(1, labels[:, None]).sum() + logps.gather(1, ids).sum(), wanted)

    def liger() -> None:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        loss: Tensor = LigerFusedLinearCrossEntropyLoss()(linear.weight, states, labels)
        torch.autograd.grad(loss, wanted)

    for mib in CHUNKS_MIB:
        with patch.dict(head_chunks.CHUNK_BYTES, cuda=mib * MIB):
            tokens = head_chunks.chunk_tokens(vocabulary, "cuda")
            yield {**what, "form": f"{mib} MiB", "chunk": tokens, "ms": milliseconds(ours), "mib": added_mib(ours)}
    for name, form in (("whole, labels and ids", naive), ("Liger, labels alone", liger)):
        try:
            yield {**what, "form": name, "ms": milliseconds(form), "mib": added_mib(form)}
        except Exception as error:  # no memory for it, or not there
            yield {**what, "form": name, "error": f"{type(error).__name__}: {error}"[:200]}
