"""A run's rows on disk: the corpus in slices and segments, preference pairs, soft labels, the teacher's own log-probs.

Shards are Parquet, written once. May import collection, losses and what those may.
"""
