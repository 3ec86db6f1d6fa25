"""The coordinator of a run or a study, the pipeline that it goes through, and the body of each stage.

What a run has to itself and what runs of a study share are facilities. May import every other room but hosting.
"""
