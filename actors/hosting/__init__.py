"""Ray brought up on this machine or joined, a coordinator on it that outlives the command line, and where it stands.

May import every other room of actors.
"""
