"""Rows through Ray Data onto the engine and back; collectors on Ray and the rate limit that they share.

May import engine, cluster and telemetry.
"""
