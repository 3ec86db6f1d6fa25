"""The REST routes on Ray Serve: chat, distributions, adapters, health; and the sealed teacher.

May import dashboard and access.
"""
