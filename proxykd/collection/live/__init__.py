"""A teacher that is asked while somebody waits, and a file of what it answers.

May import the rest of collection, text and what that may.
"""
