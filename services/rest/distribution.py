"""What `POST /v1/proxy/distribution` says about a completion under one adapter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from proxykd.data.label_shards import CompletionLogps
from proxykd.losses.trust import Trust

TokenText = Callable[[int], str]


@dataclass(frozen=True)
class DistributionQuery:
    """x and y as token ids; without a completion, the query is for the next token."""

    prompt_ids: list[int]
    completion_ids: list[int]
    any_token_id: int
    top_k: int
    asked_ids: list[list[int]] | None
    """By position, ids whose log-probs are asked for beside those of the likeliest."""

    @property
    def scored_ids(self) -> list[int]:
        """What the engine scores: for the next token any one will do, since its distribution is asked for."""
        return self.completion_ids or [self.any_token_id]

    def facts(self) -> dict[str, Any]:
        return {"prompt_tokens": len(self.prompt_ids), "completion_tokens": len(self.completion_ids)}


def distribution_of(
    query: DistributionQuery, scored: CompletionLogps, trust: Trust | None, text: TokenText, vocabulary: int
) -> dict[str, Any]:
    """Returns what the route answers under one adapter: each token's log-prob, rank and entropy, and the sequence's.

    Log-probs are natural logarithms of the full softmax: logits less their logsumexp.
    """
    tokens = [_token(scored, t, query, text, vocabulary) for t in range(len(query.scored_ids))]
    if not query.completion_ids:
        return {"adapter": scored.adapter, "next_token": tokens[0], "sequence": None}
    logp = float(scored.token_logps_T.sum(dtype="float64"))
    z, weight = trust.judge(logp, len(tokens)) if trust else (None, None)
    sequence: dict[str, Any] = {"logprob": logp, "tokens": len(tokens), "z_score": z, "trust_weight": weight}
    if trust:
        sequence["trust"] = asdict(trust)
    return {"adapter": scored.adapter, "tokens": tokens, "sequence": sequence}


def _token(
    scored: CompletionLogps, t: int, query: DistributionQuery, text: TokenText, vocabulary: int
) -> dict[str, Any]:
    """One position. Entropy in nats is known within bounds: the tail as one outcome, or spread evenly."""
    assert scored.ranks_T is not None
    top_logps, tail_logmass = scored.top_logps_TK[t], float(scored.tail_logmass_T[t])
    tail = float(np.exp(tail_logmass))
    least = float(-(np.exp(top_logps) * top_logps).sum() - tail * tail_logmass)
    top = [
        {"token_id": int(i), "token": text(int(i)), "logprob": float(logp)}
        for i, logp in zip(scored.top_ids_TK[t], top_logps, strict=True)
    ]
    facts: dict[str, Any] = {
        "top": top,
        "tail_mass": tail,
        "entropy_at_least": least,
        "entropy_at_most": least + tail * float(np.log(max(vocabulary - len(top), 1))),
    }
    if scored.asked_logps is not None:
        facts["asked"] = scored.asked_logps[t]
    if not query.completion_ids:
        return facts
    token_id = query.completion_ids[t]
    actual = {"token_id": token_id, "token": text(token_id), "logprob": float(scored.token_logps_T[t])}
    return {**actual, "rank": int(scored.ranks_T[t]), **facts}
