"""vLLM, and nothing else that knows it: one base model that answers for every adapter of a run.

Applications on Serve are made of it in services, and called by name here. Imports proxykd alone.
"""
