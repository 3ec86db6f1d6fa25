"""What a run's soft labels say about themselves and about trust: sizes, mass, mu, gamma, the histogram of weights."""

from __future__ import annotations

import math
from array import array
from pathlib import Path

import numpy as np

from proxykd.data.soft_labels import LabelSource, require, unpack
from proxykd.evaluation.measures import Histogram, LabelStatistics
from proxykd.losses.trust import Trust, weight_histogram
from proxykd.runs.storage import read_table, verify_shard


def label_statistics(shards: list[Path], source: LabelSource, trust: str) -> LabelStatistics:
    """Reads every shard once. mu and gamma are over D_s: of sequence sums, or of token means where trust says so."""
    sums, tokens = array("d"), array("q")
    mass = np.zeros(source.top_k)
    for path in shards:
        verify_shard(path)
        require(path, source)
        for row in read_table(path).to_pylist():
            sums.append(row["sequence_logp"])
            tokens.append(row["tokens"])
            mass += np.exp(unpack(row, source).top_logps_TK).cumsum(-1).sum(0)
    judged = Trust.over(source.adapter, sums, tokens, trust)
    total = max(1, sum(tokens))
    ranks = [k for k in (1, 5, 10) if k <= source.top_k] if source.method == "top_k" else []
    edges, counts = weight_histogram(judged.weights(sums, tokens))
    return LabelStatistics(
        adapter=source.adapter,
        method=source.method,
        k=source.top_k,
        tokens=sum(tokens),
        bytes_per_token=sum(path.stat().st_size for path in shards) / total,
        mass_at_k={str(k): float(mass[k - 1] / total) for k in ranks},
        text_probability=math.exp(math.fsum(sums) / total),
        reduction=judged.reduction,
        mu=judged.mu,
        gamma=judged.gamma,
        histogram=Histogram(edges=edges, counts=counts),
    )
