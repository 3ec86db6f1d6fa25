"""The coordinator of a run or a study, and the pipeline that it goes through.

May import every other room but hosting.
"""
