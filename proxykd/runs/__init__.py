"""A run's directory: storage and its protocol, links, the journal, checkpoints, and which adapters a run offers.

Every path has its name here. May import config, and from losses the trust weight.
"""
