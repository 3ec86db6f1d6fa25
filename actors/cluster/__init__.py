"""The machines: what a cluster has, where a part of a run goes, how it is started and reached.

Knows no stage: demands come from proxykd's planning. May import telemetry.
"""
