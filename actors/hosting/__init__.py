"""Ray brought up on this machine or joined, a coordinator on it that outlives the command line, and where it stands.

Commands start, find and follow runs by it. May import every other room.
"""
