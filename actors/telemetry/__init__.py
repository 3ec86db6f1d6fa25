"""What a run says of itself: events, live state, logs, metrics, progress, trackers.

Who looks on cannot stop a run. Imports proxykd alone.
"""
