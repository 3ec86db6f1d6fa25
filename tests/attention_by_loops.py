"""Attention over stretches of queries and keys, written another way than any kernel."""

from __future__ import annotations

import torch


def one_stretch_after_the_other(
    queries, keys, values, query_ends, key_ends, longest_q, longest_k, *, scale, window_size, **_
):
    """What torch's flash kernels compute, by loops: the last query of a stretch sees its last key."""
    outputs = []
    assert longest_q == query_ends.diff().max()
    assert longest_k == key_ends.diff().max()
    for stretch in range(len(query_ends) - 1):
        rows, columns = (slice(*ends[stretch : stretch + 2].tolist()) for ends in (query_ends, key_ends))
        shares = queries.shape[1] // keys.shape[1]
        k, v = (one[columns].repeat_interleave(shares, 1) for one in (keys, values))
        places = torch.arange(len(k), device=k.device)
        behind = places[len(k) - (rows.stop - rows.start) :, None] - places
        seen = (behind >= 0) & (behind <= (window_size[0] if window_size[0] >= 0 else len(k)))
        scores = torch.einsum("qhd,khd->hqk", queries[rows], k) * scale
        outputs.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v))
    return torch.cat(outputs)
