"""Before anything starts: what a run needs in memory, time and disk, and what its models will see.

May import training and what that may; not report or study.
"""
