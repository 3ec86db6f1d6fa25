"""How close a model is to its teacher, and how sure that is: fidelity, errors, rounds, benchmarks.

May import data, models and what those may.
"""
