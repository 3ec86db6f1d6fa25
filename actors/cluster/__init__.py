"""The machines: what a cluster has, where a part of a run goes, how it is started and reached.

May import telemetry.
"""
