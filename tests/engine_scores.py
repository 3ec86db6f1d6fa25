"""Log-probs in the form in which an engine tells them, by a forward pass of the trainer's own."""

from __future__ import annotations

from collections.abc import Sequence

from proxykd.data.label_shards import CompletionLogps
from proxykd.models.batching import collate
from proxykd.models.scorer import CompletionScorer


def told(
    scorer: CompletionScorer, prompts: Sequence[list[int]], completions: Sequence[list[int]], top_k: int
) -> list[CompletionLogps]:
    """Those of each completion, with the `top_k` likeliest tokens at each of its places."""
    found = []
    for prompt, completion in zip(prompts, completions, strict=True):
        scores = scorer.score(collate([prompt], [completion]), top_k)
        top = scores.top
        assert top is not None
        arrays = (scores.token_logps_N, top.ids_NK, top.logps_NK, top.tail_logmass_N)
        found.append(CompletionLogps(*(array.numpy() for array in arrays), "local"))
    return found
