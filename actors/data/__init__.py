"""Rows to the engine and back by Ray tasks, to the trainers by Ray Data; collectors on Ray and their shared rate limit.

What is drawn and kept of a row is proxykd's to say. May import engine, cluster and telemetry.
"""
