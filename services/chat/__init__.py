"""A run's models in conversation, side by side: in a terminal, and on a page of this machine.

Needs no Ray: the models are in this process. May import dashboard and access.
"""
