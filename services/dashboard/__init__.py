"""The dashboard: a versioned JSON API over run directories, a live stream of each run, and the page that shows them.

Reads run directories and the live view, and changes neither. May import access.
"""
