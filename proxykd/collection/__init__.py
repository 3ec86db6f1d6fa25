"""The teacher's completions: requests, providers, rate limits, budgets, and the data set that they become.

Nothing that was paid for is asked or lost twice. May import text and what that may.
"""
