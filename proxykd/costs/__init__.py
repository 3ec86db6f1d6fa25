"""Formulas of what work takes: memory of a process, seconds of a device, what is held of a cluster.

Knows models and devices, and no stage. May import data, models and what those may.
"""
