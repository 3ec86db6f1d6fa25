"""A run's directory: storage and its protocol, links, the journal, checkpoints, and how adapters are named.

Every path has its name here. May import config.
"""
