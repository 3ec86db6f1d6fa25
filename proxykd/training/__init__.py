"""What a training worker does: the stages' loops, losses on rows, the step, sampling, gates.

The device, the stream of rows and progress are handed in. May import stages and what that may.
"""
