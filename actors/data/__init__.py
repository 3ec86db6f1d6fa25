"""Rows through Ray Data onto the engine and back; collectors on Ray and the rate limit that they share.

What is drawn and kept of a row is proxykd's to say. May import engine, cluster and telemetry.
"""
