"""What a forward pass keeps."""

from __future__ import annotations

from torch.autograd.graph import saved_tensors_hooks


def kept_bytes(scorer, batch):
    """What the scorer's pass over the batch leaves for its backward pass, weights apart: bytes, each storage once."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in scorer.parameters()}
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        scorer(batch)
    return sum(storage.nbytes() for at, storage in kept.items() if at not in weights)
