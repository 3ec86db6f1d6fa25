"""Soft labels as tensors: apart from their files, which readers and writers without torch know too."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from proxykd.data.soft_labels import SoftLabels
from proxykd.losses.top_k import TopK


def as_top_k(labels: Sequence[SoftLabels]) -> TopK:
    """Several records' labels, one after the other, as the tensors that the KL takes (float32)."""
    return TopK(
        torch.from_numpy(np.concatenate([label.top_ids_TK for label in labels])),
        torch.from_numpy(np.concatenate([label.top_logps_TK for label in labels])).float(),
        torch.from_numpy(np.concatenate([label.tail_logmass_T for label in labels])).float(),
    )
