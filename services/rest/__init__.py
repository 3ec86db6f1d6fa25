"""The REST routes on Ray Serve: chat, distributions, adapters, health; and the sealed teacher.

The one place that makes applications of the engine. May import dashboard and access.
"""
