"""What a training worker does: losses of the stages on rows, the step, sampling, gates.

May import evaluation and what that may; the device, the stream and progress are handed in.
"""
