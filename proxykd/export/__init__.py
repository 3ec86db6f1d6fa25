"""A finished run's student in the formats of the programs that serve models, each behind a gate of parity.

May import models, text, report and what those may.
"""
