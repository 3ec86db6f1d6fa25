"""What a run has found, gathered from its stages' results: report.json, a page's numbers, milestones.

Reads run directories, and loads no model. May import evaluation and what that may.
"""
