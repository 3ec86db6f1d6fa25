"""Ray Train: worker groups, the streams that feed them, and the stages' loops on them.

May import data and what that may.
"""
