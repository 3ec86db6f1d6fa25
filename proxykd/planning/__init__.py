"""Before anything starts: what a run needs in memory, time and disk, and what its models will see.

Demands and hours are those of the stages' entries. May import stages and what that may.
"""
