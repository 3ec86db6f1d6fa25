"""The stages of a run, each a thing: what it needs, makes, shares and costs stands in its entry, and its result's type.

All that lists or orders stages derives from `table.STAGES`. May import costs, evaluation and what those may.
"""
