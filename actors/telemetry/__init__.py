"""What a run tells of itself: events, logs, metrics, progress, trackers.

Imports proxykd alone.
"""
