"""vLLM, and nothing else that knows it: one base model that answers for every adapter of a run.

Imports proxykd alone.
"""
