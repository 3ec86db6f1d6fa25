"""What a run's soft labels say about themselves and about trust: sizes, mass, mu, gamma, the histogram of weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from proxykd.data.soft_labels import LabelSource, require, unpack
from proxykd.losses.trust import reduction_of, scores, trust_statistics, trust_weights
from proxykd.runs.storage import read_table, verify_shard

HISTOGRAM_BINS = 20


def label_statistics(shards: list[Path], source: LabelSource, trust: str) -> dict[str, Any]:
    """Reads every shard once. mu and gamma are over D_s: of sequence sums, or of token means where trust says so."""
    sums: list[float] = []
    tokens: list[int] = []
    mass = np.zeros(source.top_k)
    for path in shards:
        verify_shard(path)
        require(path, source)
        for row in read_table(path).to_pylist():
            sums.append(row["sequence_logp"])
            tokens.append(row["tokens"])
            mass += np.exp(unpack(row, source).top_logps_TK).cumsum(-1).sum(0)
    reduction = reduction_of(trust)
    judged = scores(sums, tokens, reduction)
    mu, gamma = trust_statistics(judged)
    counts, edges = np.histogram(trust_weights(judged, mu, gamma), bins=HISTOGRAM_BINS, range=(0.0, 1.0))
    total = max(1, sum(tokens))
    return {
        "adapter": source.adapter,
        "k": source.top_k,
        "tokens": sum(tokens),
        "bytes_per_token": sum(path.stat().st_size for path in shards) / total,
        "mass_at_k": {str(k): float(mass[k - 1] / total) for k in (1, 5, 10) if k <= source.top_k},
        "reduction": reduction,
        "mu": mu,
        "gamma": gamma,
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }
