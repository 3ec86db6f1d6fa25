"""Ray Train: worker groups, the streams that feed them, and the call of a stage's loop on each worker.

The loops themselves lie in proxykd. May import data and what that may.
"""
