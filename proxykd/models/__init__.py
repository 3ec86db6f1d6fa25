"""Models: their files, sizes and shapes, loading and merging, micro-batches and scoring, workers side by side.

Knows no stage of the method. May import losses, text and what that may.
"""
