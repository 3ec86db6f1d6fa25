"""Mathematics alone: divergences, the head, sequence sums, the trust weight.

Pure functions of tensors and numbers, which know no config, file or model. Imports no other room.
"""
