"""Who may ask, and how a refusal looks: API keys, errors as JSON.

Every route, of a run or of the dashboard, answers by it. Imports no other room.
"""
