"""What a run has found and has to offer, gathered from its stages' results: report.json, a page's numbers, adapters.

Reads run directories, and loads no model. May import stages and what that may.
"""
