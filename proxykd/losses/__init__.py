"""Mathematics alone: divergences, the head, sequence sums, the trust weight.

Pure functions of tensors and numbers; knows no config, file or model. Imports nothing of the other rooms.
"""
