"""Whether the student can take over from the teacher, and for which prompts: blind comparisons, verdicts, a
certificate.

May import evaluation, models, data, collection, text, runs, config and errors.
"""
