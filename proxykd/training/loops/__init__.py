"""The stages' loops: each takes a Worker and its task, runs on every worker alike, and returns what it found.

Rank 0 writes files. The stage's body in actors asks for them, by `Context.train`. May import what training may.
"""
