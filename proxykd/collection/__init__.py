"""Asking a black-box teacher: fast to its limits, exact about the money, and never twice."""
