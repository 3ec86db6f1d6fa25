"""`proxykd`: the commands, and what a terminal shows of them.

Commands import what they do inside: `--help` loads neither torch nor Ray. May import every other room.
"""
