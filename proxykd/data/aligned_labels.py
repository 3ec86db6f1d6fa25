"""The labels of rows in a student's own tokens (data/retokenised.py) as what the losses take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from proxykd.data.label_tensors import as_top_k
from proxykd.losses.cross_tokenizer import NONE, AlignedTopK, aligned_labels
from proxykd.losses.top_k import moved
from proxykd.text.corpus import Row


def aligned(rows: Sequence[Row], student_ids_N: Tensor) -> AlignedTopK:
    """What a student of its own tokenizer is to be at the N tokens of a micro-batch's rows, one behind the other: made
    where the labels lie, and moved to where its ids are."""
    labels = as_top_k([row["soft_labels"] for row in rows])
    top_k = labels.ids_NK.shape[1]
    images_NK = np.concatenate([np.frombuffer(row["images"], "<i4").reshape(-1, top_k) for row in rows])
    ours, theirs = (_starts(rows, key) for key in ("proxy_ids", "completion_ids"))
    chunks = [
        np.asarray(row["chunks"], np.int64).reshape(-1, 4) + np.array([our, 0, their, 0])
        for row, our, their in zip(rows, ours, theirs, strict=False)
    ]
    target = aligned_labels(
        labels,
        torch.tensor([one for row in rows for one in row["proxy_ids"]]),
        torch.from_numpy(np.concatenate([row["soft_labels"].token_logps_T for row in rows])),
        student_ids_N.cpu(),
        torch.from_numpy(joined(rows, "proxy_at", "proxy_ids")),
        torch.from_numpy(images_NK.astype(np.int64)),
        torch.from_numpy(np.concatenate(chunks)),
    )
    device = student_ids_N.device
    there = {name: moved(value, device) for name, value in vars(target).items() if name != "top"}
    return replace(target, top=target.top.to(device), **there)


def joined(rows: Sequence[Row], key: str, of: str) -> np.ndarray:
    """The rows' places `key` among tokens `of` their own as places among those of all rows, one behind the other."""
    found = []
    for row, start in zip(rows, _starts(rows, of), strict=False):
        places = np.asarray(row[key], np.int64)
        found.append(np.where(places == NONE, NONE, places + start))
    return np.concatenate(found)


def _starts(rows: Sequence[Row], key: str) -> list[int]:
    return list(accumulate((len(row[key]) for row in rows), initial=0))
