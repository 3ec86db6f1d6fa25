"""`proxykd`: the commands, and what a terminal shows of them.

May import every other room of services.
"""
