"""Who may ask, and how a refusal looks: API keys, errors as JSON.

Imports no other room of services.
"""
